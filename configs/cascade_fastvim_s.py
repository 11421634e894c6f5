# Cascade Mask R-CNN, FastVim-S, simple pyramid, ViTDet's recipe on COCO. Published: 48.4 box AP.
_base_ = './cascade_fastvim_t.py'
model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://fastvim_small'),
    ),
    neck=dict(in_channels=384),
)
