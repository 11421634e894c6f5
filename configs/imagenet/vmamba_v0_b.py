# Vanilla VMamba-B on ImageNet-1K, 300 epochs, from scratch as published. Published: 83.7 top-1.
# Drop path is that of the paper and of the file's name; the authors' config says 0.5.
_base_ = './vmamba_t.py'
model = dict(
    backbone=dict(arch='base_v0', drop_path_rate=0.6),
    head=dict(in_channels=1024),
)
