# A shrunk FastChannelVim on generated eight-channel pictures of cells, at a size that two CPU cores train from scratch
# in minutes. Wells, not images, are split: nothing of a validation well was seen. `make demo-cells` runs it.
_base_ = [
    '../_base_/models/fastchannelvim_s.py',
    '../_base_/datasets/jumpcp.py',
    '../_base_/runtime_channels.py',
]

num_classes = 6
channels = 64
model = dict(
    data_preprocessor=dict(
        num_classes=num_classes,
        mean=[17.5, 29.7, 18.6, 18.5, 20.6, 20.5, 20.9, 18.2],
        std=[42.3, 43.2, 37.1, 36.3, 40.4, 40.2, 41.3, 35.7],
    ),
    backbone=dict(
        img_size=64,
        patch_size=16,
        embed_dims=channels,
        depth=4,
        drop_path_rate=0.0,
    ),
    head=dict(num_classes=num_classes, in_channels=channels),
)
train_pipeline = [
    dict(type='mmvmamba.LoadPlanes', channels=8),
    dict(type='mmvmamba.RandomFlipOrRotate', prob=0.8),
    dict(type='PackInputs', _scope_='mmpretrain'),
]
plate = dict(
    data_root='data/shapes/cells',
    tables='plate.csv',
    plate_map='platemap.csv',
    metadata='metadata.csv',
    split_by='well',
)
loader = dict(batch_size=24, num_workers=1)
train_dataloader = dict(**loader, dataset=dict(**plate, pipeline=train_pipeline))
val_dataloader = dict(**loader, dataset=dict(**plate))
test_dataloader = dict(**loader, dataset=dict(**plate, split='val'))

epochs = 30
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=10)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, eta_min=1e-5, convert_to_iter_based=True),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.002, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
