# ChannelVim-S, the unpooled baseline with a class token. Published: 73.5 %.
_base_ = './fastchannelvim_s16.py'

model = dict(backbone=dict(type='mmvmamba.ChannelVim', out_type='cls_token'))
