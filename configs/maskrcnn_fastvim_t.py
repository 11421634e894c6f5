# Mask R-CNN, FastVim-T, simple pyramid, COCO 3x with large-scale jitter. A recipe of ours: no published figure.
_base_ = [
    '_base_/models/mask_rcnn_simple_fpn.py',
    '_base_/datasets/coco_lsj_1024.py',
    '_base_/schedules/fastvim_coco_3x.py',
    '_base_/runtime_det.py',
]
model = dict(
    backbone=dict(
        type='FastVim',
        arch='tiny',
        img_size=1024,
        out_indices=(23,),
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://fastvim_tiny'),
    ),
    neck=dict(in_channels=192),
)
