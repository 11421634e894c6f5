# Vanilla VMamba-S on ImageNet-1K, 300 epochs, from scratch as published. Published: 83.5 top-1.
_base_ = './vmamba_t.py'
model = dict(
    backbone=dict(arch='small_v0', drop_path_rate=0.3),
)
