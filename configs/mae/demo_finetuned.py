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
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/mae_demo/epoch_8.pth'),
    ),
    head=dict(in_channels=channels),
)
epochs = 3
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
