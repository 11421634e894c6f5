# UPerNet, VMamba-S (s2l15), ADE20K 640, whole-image test. The published table gives figures for 512 only.
_base_ = [
    '_base_/models/upernet.py',
    '_base_/datasets/ade20k_640.py',
    '_base_/schedules/ade20k_160k.py',
    '_base_/runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        type='VMamba',
        arch='small_s2l15',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_small_s2l15'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
