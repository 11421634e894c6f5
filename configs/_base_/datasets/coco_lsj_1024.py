# COCO 2017 instances, large-scale jitter: images of 0.1 to 2 times 1024, cropped or padded to 1024 x 1024.
_base_ = './coco_instance.py'

image_size = (1024, 1024)
pad = dict(type='Pad', _scope_='mmdet', size=image_size, pad_val=dict(img=(114, 114, 114)))
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomResize', scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_type='absolute', crop_size=image_size, recompute_bbox=True, allow_negative_crop=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)),
    pad,
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', _scope_='mmdet'),
    dict(type='Resize', _scope_='mmdet', scale=image_size, keep_ratio=True),
    pad,
    dict(type='LoadAnnotations', _scope_='mmdet', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', _scope_='mmdet', meta_keys=meta_keys[:5]),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in (768, 1024, 1280)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations', with_bbox=True)],
            [dict(type='PackDetInputs', meta_keys=meta_keys)],
        ],
    ),
]
train_dataloader = dict(batch_sampler=None, dataset=dict(pipeline=train_pipeline))  # all images have one shape
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
