# Mask R-CNN, VMamba-T (s1l8), COCO 1x. Published: 47.3 box AP, 42.7 mask AP.
_base_ = [
    '_base_/models/mask_rcnn_fpn.py',
    '_base_/datasets/coco_instance.py',
    '_base_/schedules/coco_1x.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        type='VMamba',
        arch='tiny_s1l8',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_tiny_s1l8'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
