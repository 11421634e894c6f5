# Mask R-CNN with a shrunk VMamba on the generated shapes dataset: the real recipe's parts at a size that two CPU cores
# train from scratch in minutes. `make demo` runs it.
_base_ = '../maskrcnn_vmamba_t.py'

classes = ('circle', 'triangle', 'square', 'star', 'cross')
metainfo = dict(
    classes=classes, palette=[(220, 60, 60), (240, 190, 40), (60, 180, 170), (150, 80, 200), (240, 120, 180)]
)
data_root = 'data/shapes/coco/'
channels = 64
norm_cfg = dict(type='GN', num_groups=8)  # heads without normalisation hardly learn from scratch

model = dict(
    backbone=dict(
        embed_dims=32,
        depths=(1, 1, 2, 1),
        drop_path_rate=0.0,
        init_cfg=dict(_delete_=True),  # from scratch: nobody publishes weights of this size
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=channels, num_outs=4, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=channels, feat_channels=channels, anchor_generator=dict(scales=[8], strides=[4, 8, 16, 32])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=1,
            num_shared_fcs=1,
            conv_out_channels=channels,
            norm_cfg=norm_cfg,
            in_channels=channels,
            fc_out_channels=256,
            num_classes=len(classes),
        ),
        mask_roi_extractor=dict(out_channels=channels),
        mask_head=dict(
            in_channels=channels,
            num_convs=2,
            conv_out_channels=channels,
            norm_cfg=norm_cfg,
            num_classes=len(classes),
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=48)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(max_per_img=20)),
)

# _base_'s pipelines for smaller images, number by number of their steps
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=(224, 128))  # Resize
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(224, 128))  # Resize
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1]['transforms'][0] = [
    dict(type='Resize', scale=scale, keep_ratio=True) for scale in [(192, 112), (224, 128), (256, 144)]
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline, filter_cfg=dict(min_size=16)),
)
val_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

epochs = 10
train_cfg = dict(max_epochs=epochs, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, eta_min=1e-5, convert_to_iter_based=True),
]
optim_wrapper = dict(optimizer=dict(lr=0.002), clip_grad=dict(max_norm=10.0))
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2, save_best=None))
