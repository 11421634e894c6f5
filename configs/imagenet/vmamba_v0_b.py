# Vanilla VMamba-B on ImageNet-1K, 300 epochs, from scratch as published. Published: 83.7 top-1.
_base_ = './vmamba_t.py'
model = dict(
    # drop path as in the paper and in the file's name; the authors' config says 0.5
    backbone=dict(arch='base_v0', drop_path_rate=0.6),
    head=dict(in_channels=1024),
)
