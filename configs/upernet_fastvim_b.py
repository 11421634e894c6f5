# UPerNet, FastVim-B, ADE20K 512, slide test. Published: 47.8 mIoU.
_base_ = './upernet_fastvim_t.py'
model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://fastvim_base'),
    ),
    decode_head=dict(in_channels=[768] * 4),
    auxiliary_head=dict(in_channels=768),
)
