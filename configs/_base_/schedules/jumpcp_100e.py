# As published: 100 epochs of 256 images a step, 1e-3, 10 epochs of warm-up from 0, cosine to 1e-6, float32. The weight
# decay rises from 0.04 to 0.4; biases and one-dimensional parameters have none.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=1)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.04),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-9, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', T_max=90, by_epoch=True, begin=10, end=100, eta_min=1e-6, convert_to_iter_based=True
    ),
    dict(type='mmvmamba.CosineWeightDecay', ratio=10.0, begin=0, end=100, convert_to_iter_based=True),
]
