# Mask R-CNN, FastVim-S, simple pyramid, COCO 3x with large-scale jitter. A recipe of ours: no published figure.
_base_ = './maskrcnn_fastvim_t.py'
model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://fastvim_small'),
    ),
    neck=dict(in_channels=384),
)
