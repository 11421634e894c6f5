# Mask R-CNN, VMamba-T (s2l5), COCO 1x. Published: 47.4 box AP, 42.7 mask AP.
_base_ = './maskrcnn_vmamba_t.py'
model = dict(
    backbone=dict(
        arch='tiny_s2l5',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_tiny_s2l5'),
    )
)
