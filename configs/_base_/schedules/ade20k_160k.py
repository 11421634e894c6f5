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
    # As the published trainings: no decay where a parameter's name contains `norm`, and nowhere else. So A_logs, Ds,
    # biases and the norms inside stem and downsamplings are decayed. The rule that the authors of Mamba meant, none for
    # all norms, A_logs and Ds, is an option: see configs/README.md.
    paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0)}),
)
