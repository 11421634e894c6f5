# UPerNet with a shrunk FastVim on the generated shapes dataset. Data, heads and schedule are those of the VMamba demo.
# `make demo CONFIG=configs/demo/upernet_fastvim_shapes.py` runs it.
_base_ = './upernet_vmamba_shapes.py'

channels = 128
model = dict(
    backbone=dict(
        _delete_=True,  # no init_cfg, so from scratch: nobody publishes weights of this size
        type='FastVim',
        arch='tiny',
        img_size=128,
        patch_size=8,  # small images, small patches
        embed_dims=channels,
        depth=8,
        out_indices=(1, 3, 5, 7),
        drop_path_rate=0.0,
    ),
    decode_head=dict(in_channels=[channels] * 4),
    auxiliary_head=dict(in_channels=channels),
)
no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(lr=0.001),
    paramwise_cfg=dict(
        custom_keys={'pos_embed': no_decay, 'mixer.A_log': no_decay, 'mixer.A_b_log': no_decay, 'mixer.D': no_decay}
    ),
)
