# As published: 1600 epochs of 4096 images a step, 2.4e-3, 40 epochs of warm-up, cosine to 0, float32. Everything is
# decayed, norms and biases included, other than in the MAE schedules of mmpretrain.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1600)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=2.4e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-9, by_epoch=True, begin=0, end=40, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=1560,
        by_epoch=True,
        begin=40,
        end=1600,
        eta_min=0.0,
        convert_to_iter_based=True,
    ),
]
