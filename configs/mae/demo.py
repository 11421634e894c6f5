# Masked pretraining of a shrunk FastVim on the generated shapes, a folder a class whose labels it does not see, at a
# size that two CPU cores do in minutes. `make demo-mae` runs it, fine-tunes a classifier (demo_finetuned.py) and trains
# a detector (demo_detector.py) from its encoder.
_base_ = [
    '../_base_/models/mae_fastvim_b.py',
    '../_base_/datasets/imagenet_mae.py',
    '../_base_/runtime_mae.py',
]

size, patch = 64, 8
channels, depth = 64, 4
model = dict(
    backbone=dict(img_size=size, patch_size=patch, embed_dims=channels, depth=depth),
    neck=dict(
        grid=size // patch,
        patch_size=patch,
        embed_dims=channels,
        decoder_embed_dims=64,
        decoder_depth=1,
        encoder_depth=depth,
    ),
    head=dict(patch_size=patch),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=size, crop_ratio_range=(0.3, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        _scope_='mmpretrain',
        data_root='data/shapes/cls',
        data_prefix='train',
        with_label=False,
        pipeline=train_pipeline,
    ),
)
epochs = 8
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, eta_min=0.0, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=epochs, max_keep_ckpts=1))
