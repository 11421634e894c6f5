# FastVim-L on ImageNet-1K after masked pretraining (mae_fastvim_l.py), 50 epochs. Published: 84.9 top-1.
_base_ = './finetune_fastvim_b.py'
model = dict(
    backbone=dict(
        arch='large',
        # nobody publishes its weights: what mae_fastvim_l.py has trained
        init_cfg=dict(checkpoint='work_dirs/mae_fastvim_l/epoch_1600.pth'),
    ),
    head=dict(in_channels=1024),
)
epochs, warmup = 50, 5
train_cfg = dict(max_epochs=epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=warmup, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=2.5e-3,
        by_epoch=True,
        begin=warmup,
        end=epochs,
        T_max=epochs - warmup,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(optimizer=dict(lr=0.004), paramwise_cfg=dict(layer_decay_rate=0.75))
