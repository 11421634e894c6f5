# UPerNet, vanilla VMamba-S, ADE20K 512. Published: 49.5 mIoU single-scale, 50.5 multi-scale.
_base_ = './upernet_vmamba_t.py'
model = dict(
    backbone=dict(
        arch='small_v0',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_small_v0'),
    )
)
