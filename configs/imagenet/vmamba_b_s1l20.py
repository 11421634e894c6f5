# VMamba-B (s1l20) on ImageNet-1K, 300 epochs, from scratch as published. Published: 83.8 top-1.
_base_ = './vmamba_t.py'
model = dict(
    backbone=dict(arch='base_s1l20', drop_path_rate=0.5),
    head=dict(in_channels=1024),
)
