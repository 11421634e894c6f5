# Masked pre-training of FastVim-B on ImageNet-1K, as published.
_base_ = [
    '../_base_/models/mae_fastvim_b.py',
    '../_base_/datasets/imagenet_mae.py',
    '../_base_/schedules/fastvim_mae_1600e.py',
    '../_base_/runtime_mae.py',
]
auto_scale_lr = dict(base_batch_size=4096)
