# Mask R-CNN, VMamba-B (s2l15), COCO 1x. Published: 49.2 box AP, 44.1 mask AP.
_base_ = './maskrcnn_vmamba_t.py'
model = dict(
    backbone=dict(
        arch='base_s2l15',
        drop_path_rate=0.6,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_base_s2l15'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
