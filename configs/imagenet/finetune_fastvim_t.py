# FastVim-T, fine-tuned on images of one's own with the schedule that is published for larger ones. No published figure.
_base_ = [
    '../_base_/models/imagenet_classifier.py',
    '../_base_/datasets/folder.py',
    '../_base_/schedules/finetune_100e.py',
    '../_base_/runtime_cls.py',
]
num_classes = 10  # folders in data/my_images/train
model = dict(
    data_preprocessor=dict(num_classes=num_classes),
    backbone=dict(
        type='FastVim',
        arch='tiny',
        out_type='featmap',
        norm='RMS',
        drop_path_rate=0.05,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://fastvim_tiny'),
    ),
    head=dict(in_channels=192, num_classes=num_classes),
)
auto_scale_lr = dict(enable=True)  # the learning rate is for 1024 images a step, batches are of 32
