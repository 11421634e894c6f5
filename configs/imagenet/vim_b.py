# Vim-B (the unpooled baseline, with a class token and a norm behind the scan) on ImageNet-1K, 300 epochs, from scratch
# as published. Published: 82.6 top-1.
_base_ = './fastvim_b.py'
model = dict(
    backbone=dict(pool=None, out_type='cls_token'),
    neck=None,
)
