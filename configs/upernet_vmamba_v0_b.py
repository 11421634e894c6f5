# UPerNet, vanilla VMamba-B, ADE20K 512. Published: 50.0 mIoU single-scale, 51.3 multi-scale.
_base_ = './upernet_vmamba_b.py'
model = dict(
    backbone=dict(
        arch='base_v0',
        drop_path_rate=0.6,
        # drop path 0.5, 83.2 top-1, as in the authors' config; later they advise vmamba_base_v0 (0.6, averaged, 83.7)
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_base_v0_dp05'),
    )
)
