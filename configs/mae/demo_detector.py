# Mask R-CNN on the generated shapes whose FastVim starts from the encoder of demo.py. `make demo-mae` runs it.
_base_ = '../demo/maskrcnn_fastvim_shapes.py'

channels = 64
model = dict(
    backbone=dict(
        img_size=64,
        embed_dims=channels,
        depth=4,
        out_indices=(3,),
        norm='RMS',
        pool_scale=0.25,
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/mae_demo/epoch_8.pth'),
    ),
    neck=dict(in_channels=channels),
)
epochs = 3
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, eta_min=1e-5, convert_to_iter_based=True),
]
