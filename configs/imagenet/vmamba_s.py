# VMamba-S (s2l15) on ImageNet-1K, 300 epochs, from scratch as published. Published: 83.6 top-1.
_base_ = './vmamba_t.py'
model = dict(
    backbone=dict(arch='small_s2l15', drop_path_rate=0.3),
)
