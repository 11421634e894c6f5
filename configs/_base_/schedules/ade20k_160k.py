# 160,000 iterations of 16 images.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.00006, betas=(0.9, 0.999), weight_decay=0.01),
    # norm_decay_mult finds norms by their class, so those in stems and downsamplings count too
    paramwise_cfg=dict(
        norm_decay_mult=0.0, custom_keys={'op.A_logs': dict(decay_mult=0.0), 'op.Ds': dict(decay_mult=0.0)}
    ),
)
