# VMamba-T (s1l8), frozen behind a fresh linear layer, ImageNet-1K. Published: 82.64 top-1. What augmentation that took
# is not published; here crop and flip.
_base_ = [
    '../_base_/models/imagenet_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/linear_probe_30e.py',
    '../_base_/runtime_cls.py',
]
model = dict(
    backbone=dict(
        type='VMamba',
        arch='tiny_s1l8',
        out_indices=(3,),
        frozen_stages=4,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_tiny_s1l8'),
    ),
    head=dict(
        in_channels=768, loss=dict(_delete_=True, type='CrossEntropyLoss'), init_cfg=dict(type='Normal', std=0.01)
    ),
    train_cfg=None,
)
train_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=512, dataset=dict(pipeline=train_pipeline))
auto_scale_lr = dict(base_batch_size=4096)
