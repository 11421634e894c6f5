# 12 epochs of 16 images a step.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05),
    # norm_decay_mult finds norms by their class, so those in stems and downsamplings count too
    paramwise_cfg=dict(
        norm_decay_mult=0.0, custom_keys={'op.A_logs': dict(decay_mult=0.0), 'op.Ds': dict(decay_mult=0.0)}
    ),
)
