# UPerNet, vanilla VMamba-B, ADE20K 512. Published: 50.0 mIoU single-scale, 51.3 multi-scale.
_base_ = './upernet_vmamba_b.py'
model = dict(backbone=dict(arch='base_v0', drop_path_rate=0.6))
