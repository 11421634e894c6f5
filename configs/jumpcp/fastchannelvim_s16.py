# FastChannelVim-S with patches of 16 pixels on JUMP-CP. Published: 73.6 % (mean), 72.9 % (max pooling).
_base_ = [
    '../_base_/models/fastchannelvim_s.py',
    '../_base_/datasets/jumpcp.py',
    '../_base_/schedules/jumpcp_100e.py',
    '../_base_/runtime_channels.py',
]
auto_scale_lr = dict(base_batch_size=256)
