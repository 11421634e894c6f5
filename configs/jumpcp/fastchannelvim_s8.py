# FastChannelVim-S with patches of 8 pixels on JUMP-CP. Published: 83.1 % (mean), 85.0 % (max pooling).
_base_ = './fastchannelvim_s16.py'

model = dict(backbone=dict(patch_size=8))
