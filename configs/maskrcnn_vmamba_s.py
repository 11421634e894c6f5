# Mask R-CNN, VMamba-S (s2l15), COCO 1x. Published: 48.7 box AP, 43.7 mask AP.
_base_ = './maskrcnn_vmamba_t.py'
model = dict(
    backbone=dict(
        arch='small_s2l15',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_small_s2l15'),
    )
)
