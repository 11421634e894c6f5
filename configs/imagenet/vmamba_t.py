# VMamba-T (s1l8) on ImageNet-1K, 300 epochs, from scratch as published. Published: 82.6 top-1.
_base_ = [
    '../_base_/models/imagenet_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e.py',
    '../_base_/runtime_cls_ema.py',
]
model = dict(
    backbone=dict(type='VMamba', arch='tiny_s1l8', out_indices=(3,), drop_path_rate=0.2),
    head=dict(in_channels=768),
)
