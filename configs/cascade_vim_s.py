# Cascade Mask R-CNN, Vim-S (the unpooled baseline), ViTDet's recipe on COCO. Published: 47.1 box AP, with a class token
# in the middle of the sequence, which ours has not. Its classifier has no norm behind the scan: that starts fresh.
_base_ = './cascade_fastvim_s.py'
model = dict(
    backbone=dict(
        pool=None,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vim_small'),
    )
)
