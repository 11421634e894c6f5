# FastVim-S on ImageNet-1K, 300 epochs, from scratch as published. Published: 81.1 top-1.
_base_ = './fastvim_t.py'
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.05),
    head=dict(in_channels=384),
)
