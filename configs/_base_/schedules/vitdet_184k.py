# ViTDet's 184,375 iterations of 64 images (100 epochs), for FastVim and Vim.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=184375, val_interval=5000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=184375, milestones=[163889, 177546], gamma=0.1),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=35),
    constructor='mmvmamba.LayerDecayConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.837,  # ViTDet's 0.7 is for 12 layers; over 24 its square root spans the same range
        norm_decay_mult=0.0,
        custom_keys={
            'pos_embed': dict(decay_mult=0.0),
            'mixer.A_log': dict(decay_mult=0.0),
            'mixer.A_b_log': dict(decay_mult=0.0),
            'mixer.D': dict(decay_mult=0.0),  # and mixer.D_b
        },
    ),
)
