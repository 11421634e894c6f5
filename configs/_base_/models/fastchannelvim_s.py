# FastChannelVim-S classifier of JUMP-CP: eight channels, 160 targets and the control. Channels are drawn in training.
model = dict(
    type='ImageClassifier',
    _scope_='mmpretrain',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        num_classes=161,
        # five fluorescence channels, then three bright-field ones, of raw values
        mean=[
            *(4.031743599139058, 1.565935237087539, 3.77367898215863, 3.4605251427133257, 4.1723172504050225),
            *(6.780529773318951, 6.787385700135139, 6.778120829362721),
        ],
        std=[
            *(17.318438884455695, 12.015918256263747, 16.966058078452495, 15.064776266287147, 17.964118200870608),
            *(21.638766346725316, 21.670565699654457, 21.639488585095584),
        ],
        to_rgb=False,
    ),
    backbone=dict(
        type='mmvmamba.FastChannelVim',
        arch='small',
        patch_size=16,
        in_channels=8,
        out_type='avg_featmap',
        drop_path_rate=0.05,
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=161,
        in_channels=384,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    ),
)
