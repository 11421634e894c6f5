# UPerNet, vanilla VMamba-T, ADE20K 512. Published: 47.3 mIoU single-scale, 48.3 multi-scale.
_base_ = './upernet_vmamba_t.py'
model = dict(
    backbone=dict(
        arch='tiny_v0',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_tiny_v0'),
    )
)
