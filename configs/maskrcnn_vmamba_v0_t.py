# Mask R-CNN, vanilla VMamba-T, COCO 1x. Published: 46.5 box AP, 42.1 mask AP.
_base_ = './maskrcnn_vmamba_t.py'
model = dict(
    backbone=dict(
        arch='tiny_v0',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_tiny_v0'),
    )
)
