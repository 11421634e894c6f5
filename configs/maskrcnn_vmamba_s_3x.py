# Mask R-CNN, VMamba-S (s2l15), COCO 3x with multi-scale training. Published: 49.9 box AP, 44.2 mask AP.
_base_ = './maskrcnn_vmamba_t_3x.py'
model = dict(
    backbone=dict(
        arch='small_s2l15',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_small_s2l15'),
    )
)
