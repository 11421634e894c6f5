# 36 epochs of 16 images a step with layer-wise learning-rate decay, for FastVim.
_base_ = './coco_3x.py'

optim_wrapper = dict(
    constructor='mmvmamba.LayerDecayConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.837,
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
