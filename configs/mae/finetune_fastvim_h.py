# FastVim-H on ImageNet-1K after masked pretraining (mae_fastvim_h.py), 50 epochs. Published: 86.1 top-1.
_base_ = './finetune_fastvim_l.py'
model = dict(
    backbone=dict(arch='huge', init_cfg=dict(checkpoint='work_dirs/mae_fastvim_h/epoch_1600.pth')),
    head=dict(in_channels=1280),
)
