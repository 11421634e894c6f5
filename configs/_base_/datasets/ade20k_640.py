# ADE20K, crops of 640, whole images tested with a short side of 640.
_base_ = './ade20k.py'

# _base_'s pipelines, number by number of their steps
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=(2560, 640))  # RandomResize
train_pipeline[3].update(crop_size=(640, 640))  # RandomCrop
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(2560, 640))  # Resize
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1]['transforms'][0] = [
    dict(type='Resize', scale=(round(2560 * ratio), round(640 * ratio)), keep_ratio=True)
    for ratio in [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
