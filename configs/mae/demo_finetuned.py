# A classifier of the generated shapes that starts from the encoder of demo.py, with the parts of the published
# fine-tuning: pooled means scaled by the kept quarter, rates that fall towards the stem. `make demo-mae` runs it.
_base_ = '../demo/vmamba_shapes_cls.py'

channels = 64
model = dict(
    backbone=dict(
        _delete_=True,
        type='FastVim',
        arch='tiny',
        img_size=64,
        patch_size=8,
        embed_dims=channels,
        depth=4,
        out_type='featmap',
        norm='RMS',
        pool_scale=0.25,
        drop_path_rate=0.0,
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/mae_demo/epoch_4.pth'),
    ),
    head=dict(in_channels=channels),
)
size = 64  # as in pretraining
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=size, crop_ratio_range=(0.75, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomGrayscale', prob=0.3, keep_channels=True),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', _scope_='mmpretrain'),
    dict(type='Resize', _scope_='mmpretrain', scale=(size, size)),
    dict(type='PackInputs', _scope_='mmpretrain'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
epochs = 2
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, eta_min_ratio=5e-3, convert_to_iter_based=True),
]
optim_wrapper = dict(
    optimizer=dict(lr=0.002),
    constructor='LearningRateDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.8, custom_keys={'pos_embed': dict(decay_mult=0.0)}),
)
