# VMamba-B (s2l15) on ImageNet-1K, 300 epochs, from scratch as published. Published: 83.9 top-1.
_base_ = './vmamba_t.py'
model = dict(
    backbone=dict(arch='base_s2l15', drop_path_rate=0.6),
    head=dict(in_channels=1024),
)
