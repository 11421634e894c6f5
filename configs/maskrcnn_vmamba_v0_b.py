# Mask R-CNN, vanilla VMamba-B, COCO 1x. Published: 48.6 box AP, 43.3 mask AP.
_base_ = './maskrcnn_vmamba_t.py'
model = dict(
    backbone=dict(
        arch='base_v0',
        drop_path_rate=0.6,
        # drop path 0.5, 83.2 top-1, as in the authors' config; later they advise vmamba_base_v0 (0.6, averaged, 83.7)
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_base_v0_dp05'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
