# VMamba-S (s1l20) on ImageNet-1K, 300 epochs, from scratch as published. Published: 83.3 top-1.
_base_ = './vmamba_t.py'
model = dict(
    backbone=dict(arch='small_s1l20', drop_path_rate=0.3),
)
