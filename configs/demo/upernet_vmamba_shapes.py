# UPerNet with a shrunk VMamba on the generated shapes dataset: the real recipe's parts at a size that two CPU cores
# train from scratch in minutes. `make demo-seg` runs it.
_base_ = '../upernet_vmamba_t.py'

metainfo = dict(
    classes=('sky', 'wall', 'ground', 'circle', 'triangle', 'square', 'star', 'cross'),
    palette=[
        [90, 160, 220],
        [170, 120, 90],
        [110, 150, 80],
        [220, 60, 60],
        [240, 190, 40],
        [60, 180, 170],
        [150, 80, 200],
        [240, 120, 180],
    ],
)
data_root = 'data/shapes/ade'
crop_size = (128, 128)

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        embed_dims=32,
        depths=(1, 1, 2, 1),
        drop_path_rate=0.0,
        init_cfg=dict(_delete_=True),  # from scratch: nobody publishes weights of this size
    ),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=64, num_classes=8, norm_cfg=dict(type='BN')),
    auxiliary_head=dict(in_channels=128, channels=32, num_classes=8, norm_cfg=dict(type='BN')),
)

# _base_'s pipelines for smaller images, number by number of their steps
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=(512, 128), ratio_range=(0.9, 1.3))  # RandomResize
train_pipeline[3].update(crop_size=crop_size)  # RandomCrop
del train_pipeline[5]  # PhotoMetricDistortion: classes differ in colour
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(512, 128))  # Resize
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1]['transforms'][0] = [
    dict(type='Resize', scale=scale, keep_ratio=True) for scale in [(384, 96), (512, 128), (640, 160)]
]
# ADE20KDataset insists on ADE20K's classes; the layout and the label files are the same
dataset = dict(
    type='mmvmamba.CheckedSegDataset',
    data_root=data_root,
    metainfo=metainfo,
    img_suffix='.jpg',
    seg_map_suffix='.png',
    reduce_zero_label=True,
)
train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader

iterations = 1200
train_cfg = dict(max_iters=iterations, val_interval=600)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=60),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=60, end=iterations),
]
optim_wrapper = dict(optimizer=dict(lr=0.002), clip_grad=dict(max_norm=10.0))
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=200, max_keep_ckpts=2, save_best=None))
