# UPerNet, VMamba-T (s2l5), ADE20K 512. Published: 48.3 mIoU single-scale, 48.6 multi-scale.
_base_ = './upernet_vmamba_t.py'
model = dict(
    backbone=dict(
        arch='tiny_s2l5',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_tiny_s2l5'),
    )
)
