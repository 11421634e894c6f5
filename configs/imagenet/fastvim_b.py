# FastVim-B on ImageNet-1K, 300 epochs, from scratch as published. Published: 82.6 top-1.
_base_ = './fastvim_t.py'
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4),
    head=dict(in_channels=768),
)
