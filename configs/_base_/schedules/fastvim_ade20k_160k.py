# 160,000 iterations of 16 images, for FastVim.
_base_ = './ade20k_160k.py'

optim_wrapper = dict(
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            '_delete_': True,
            'pos_embed': dict(decay_mult=0.0),
            'mixer.A_log': dict(decay_mult=0.0),
            'mixer.A_b_log': dict(decay_mult=0.0),
            'mixer.D': dict(decay_mult=0.0),  # and mixer.D_b
        },
    ),
)
