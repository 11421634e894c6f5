# Cascade Mask R-CNN, FastVim-B, simple pyramid, ViTDet's recipe on COCO. Published: 50.0 box AP.
_base_ = './cascade_fastvim_t.py'
model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://fastvim_base'),
    ),
    neck=dict(in_channels=768),
)
