# FastVim-B on ImageNet-1K after masked pretraining (mae_fastvim_b.py), 100 epochs. Published: 83.0 top-1.
_base_ = [
    '../_base_/models/imagenet_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/finetune_100e.py',
    '../_base_/runtime_cls.py',
]
model = dict(
    backbone=dict(
        type='FastVim',
        arch='base',
        out_type='featmap',
        norm='RMS',
        pool_scale=0.25,  # the share that was kept: means are then as large as the sums of pretraining
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://mae_fastvim_b'),
    ),
    head=dict(in_channels=768),
)
