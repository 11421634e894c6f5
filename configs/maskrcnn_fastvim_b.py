# Mask R-CNN, FastVim-B, simple pyramid, COCO 3x with large-scale jitter. A recipe of ours: no published figure.
_base_ = './maskrcnn_fastvim_t.py'
model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://fastvim_base'),
    ),
    neck=dict(in_channels=768),
)
