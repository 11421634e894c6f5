# Cascade Mask R-CNN, FastVim-T, simple pyramid, ViTDet's recipe on COCO. Published: 45.1 box AP.
_base_ = [
    '_base_/models/cascade_mask_rcnn_simple_fpn.py',
    '_base_/datasets/coco_lsj_1024.py',
    '_base_/schedules/vitdet_184k.py',
    '_base_/runtime_det_iters.py',
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
# batches of 2 on 32 devices make the published 64
train_dataloader = dict(batch_size=2, sampler=dict(type='InfiniteSampler'))
auto_scale_lr = dict(base_batch_size=64)
