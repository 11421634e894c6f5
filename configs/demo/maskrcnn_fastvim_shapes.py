# Mask R-CNN with a shrunk FastVim and a simple pyramid on the generated shapes dataset. Data, heads and schedule are
# those of the VMamba demo. `make demo CONFIG=configs/demo/maskrcnn_fastvim_shapes.py` runs it.
_base_ = './maskrcnn_vmamba_shapes.py'

channels = 128
model = dict(
    backbone=dict(
        _delete_=True,  # no init_cfg, so from scratch: nobody publishes weights of this size
        type='FastVim',
        arch='tiny',
        img_size=(128, 224),
        patch_size=8,  # small images, small patches
        embed_dims=channels,
        depth=6,
        out_indices=(5,),
        drop_path_rate=0.0,
    ),
    neck=dict(_delete_=True, type='SimpleFPN', in_channels=channels, out_channels=64, num_outs=4, scales=(2, 1, 0.5)),
)
no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(lr=0.001),
    paramwise_cfg=dict(
        custom_keys={'pos_embed': no_decay, 'mixer.A_log': no_decay, 'mixer.A_b_log': no_decay, 'mixer.D': no_decay}
    ),
)
