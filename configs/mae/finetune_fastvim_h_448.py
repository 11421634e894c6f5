# FastVim-H on ImageNet-1K at 448 x 448 after masked pretraining at 224 (mae_fastvim_h.py), 50 epochs, gradients clipped
# at 3, the short side of test images resized to 448. Published: 86.7 top-1.
_base_ = './finetune_fastvim_h.py'
size = 448
model = dict(backbone=dict(img_size=size))
train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = test_pipeline[2].crop_size = size
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(clip_grad=dict(max_norm=3.0))
