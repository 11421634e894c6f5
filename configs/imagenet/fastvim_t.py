# FastVim-T on ImageNet-1K, 300 epochs, from scratch as published. Published: 75.4 top-1.
_base_ = [
    '../_base_/models/imagenet_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/fastvim_imagenet_300e.py',
    '../_base_/runtime_cls_ema.py',
]
model = dict(
    backbone=dict(type='FastVim', arch='tiny', out_type='featmap', norm='RMS', drop_path_rate=0.05),
    head=dict(in_channels=192),
)
