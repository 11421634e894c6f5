# Mask R-CNN, vanilla VMamba-S, COCO 1x. Published: 48.2 box AP, 43.0 mask AP.
_base_ = './maskrcnn_vmamba_t.py'
model = dict(
    backbone=dict(
        arch='small_v0',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_small_v0'),
    )
)
