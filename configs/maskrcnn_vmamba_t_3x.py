# Mask R-CNN, VMamba-T (s1l8), COCO 3x with multi-scale training. Published: 48.8 box AP, 43.7 mask AP.
_base_ = [
    '_base_/models/mask_rcnn_fpn.py',
    '_base_/datasets/coco_instance_multiscale.py',
    '_base_/schedules/coco_3x.py',
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
