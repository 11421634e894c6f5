# Masked pre-training of FastVim-L on ImageNet-1K, as published.
_base_ = [
    '../_base_/models/mae_fastvim_b.py',
    '../_base_/datasets/imagenet_mae.py',
    '../_base_/schedules/fastvim_mae_1600e.py',
    '../_base_/runtime_mae.py',
]

model = dict(
    backbone=dict(arch='large', patch_size=16),
    neck=dict(grid=14, patch_size=16, embed_dims=1024, encoder_depth=48),
    head=dict(patch_size=16),
)
auto_scale_lr = dict(base_batch_size=4096)
