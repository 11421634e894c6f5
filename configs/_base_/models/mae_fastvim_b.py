# FastVim-B's masked autoencoder: a quarter of the patches is encoded, the pixels of the others are predicted.
model = dict(
    type='MAE',
    _scope_='mmpretrain',
    data_preprocessor=dict(
        type='SelfSupDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
    ),
    backbone=dict(type='mmvmamba.FastMaskVim', arch='base', img_size=224, patch_size=16, mask_ratio=0.75),
    neck=dict(type='mmvmamba.MaskedVimDecoder', grid=14, patch_size=16, embed_dims=768, encoder_depth=24),
    head=dict(
        type='MAEPretrainHead',
        norm_pix=True,
        patch_size=16,
        loss=dict(type='PixelReconstructionLoss', criterion='L2'),
    ),
)
