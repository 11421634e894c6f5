# VMamba-T (s2l5) on ImageNet-1K, 300 epochs, from scratch as published. Published: 82.5 top-1.
_base_ = './vmamba_t.py'
model = dict(
    backbone=dict(arch='tiny_s2l5', drop_path_rate=0.2),
)
