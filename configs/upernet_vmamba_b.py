# UPerNet, VMamba-B (s2l15), ADE20K 512. Published: 51.0 mIoU single-scale, 51.6 multi-scale.
_base_ = './upernet_vmamba_t.py'
model = dict(
    backbone=dict(
        arch='base_s2l15',
        drop_path_rate=0.6,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_base_s2l15'),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
