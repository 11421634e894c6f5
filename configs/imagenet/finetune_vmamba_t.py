# VMamba-T (s1l8), fine-tuned on images of one's own: FastVim's schedule with a milder decay over the layers. A recipe
# of ours: no published figure.
_base_ = './finetune_fastvim_t.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='VMamba',
        arch='tiny_s1l8',
        out_indices=(3,),
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://vmamba_tiny_s1l8'),
    ),
    head=dict(in_channels=768),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))
