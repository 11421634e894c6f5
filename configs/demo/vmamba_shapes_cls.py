# Classification with a shrunk VMamba on the generated shapes dataset, a folder a class, at a size that two CPU cores
# train from scratch in minutes. `make demo-cls` runs it.
_base_ = ['../_base_/models/imagenet_classifier.py', '../_base_/runtime_cls.py']

num_classes = 5
size = 64

model = dict(
    data_preprocessor=dict(num_classes=num_classes),
    backbone=dict(type='VMamba', arch='tiny_s1l8', embed_dims=32, depths=(1, 1, 2, 1), out_indices=(3,)),
    head=dict(num_classes=num_classes, in_channels=256),
    train_cfg=None,  # no mixing of images: a few epochs are too short for it
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=size, crop_ratio_range=(0.75, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', _scope_='mmpretrain'),
    dict(type='Resize', _scope_='mmpretrain', scale=(size, size)),
    dict(type='PackInputs', _scope_='mmpretrain'),
]
dataset = dict(type='mmvmamba.CheckedCustomDataset', data_root='data/shapes/cls')
loader = dict(batch_size=32, num_workers=1, collate_fn=dict(type='default_collate'))
train_dataloader = dict(
    **loader,
    # workers start anew each epoch, seeded by ReproducibleRandomness: what they draw survives a resume
    persistent_workers=False,
    worker_init_fn=dict(type='mmvmamba.seed_worker'),
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, data_prefix='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    **loader,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, data_prefix='val', test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

epochs = 32
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=8)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, eta_min=1e-5, convert_to_iter_based=True),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.002, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2, save_best=None))
