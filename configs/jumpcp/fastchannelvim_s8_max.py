# fastchannelvim_s8.py with maxima of lines in place of means.
_base_ = './fastchannelvim_s8.py'

model = dict(backbone=dict(pool='max'))
