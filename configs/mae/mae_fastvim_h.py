# Masked pre-training of FastVim-H on ImageNet-1K, as published.
_base_ = [
    '../_base_/models/mae_fastvim_b.py',
    '../_base_/datasets/imagenet_mae.py',
    '../_base_/schedules/fastvim_mae_1600e.py',
    '../_base_/runtime_mae.py',
]

model = dict(
    backbone=dict(arch='huge', patch_size=14),
    neck=dict(grid=16, patch_size=14, embed_dims=1280, encoder_depth=64),
    head=dict(patch_size=14),
)
auto_scale_lr = dict(base_batch_size=4096)
