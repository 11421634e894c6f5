# ChannelVim-S, the unpooled baseline with a class token. Published: 83.0 %.
_base_ = './fastchannelvim_s8.py'

model = dict(backbone=dict(type='mmvmamba.ChannelVim', out_type='cls_token'))
