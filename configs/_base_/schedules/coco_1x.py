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
    # As the published trainings: no decay where a parameter's name contains `norm`, and nowhere else. So A_logs, Ds,
    # biases and the norms inside stem and downsamplings are decayed. The rule that the authors of Mamba meant, none for
    # all norms, A_logs and Ds, is an option: see configs/README.md.
    paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0)}),
)
