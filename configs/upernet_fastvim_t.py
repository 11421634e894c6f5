# UPerNet, FastVim-T, ADE20K 512, slide test. Published: 41.8 mIoU.
_base_ = [
    '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/fastvim_ade20k_160k.py',
    '_base_/runtime_seg.py',
]
model = dict(
    backbone=dict(
        type='FastVim',
        arch='tiny',
        img_size=512,
        out_indices=(5, 11, 17, 23),
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://fastvim_tiny'),
    ),
    decode_head=dict(in_channels=[192] * 4),
    auxiliary_head=dict(in_channels=192),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
