# UPerNet, FastVim-S, ADE20K 512, slide test. Published: 44.9 mIoU.
_base_ = './upernet_fastvim_t.py'
model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://fastvim_small'),
    ),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
