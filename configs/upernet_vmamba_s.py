# UPerNet, VMamba-S (s2l15), ADE20K 512. Published: 50.6 mIoU single-scale, 51.2 multi-scale.
_base_ = './upernet_vmamba_t.py'
model = dict(
    backbone=dict(
        arch='small_s2l15',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_small_s2l15'),
    )
)
