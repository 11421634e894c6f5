# Images of one's own in folders train and val, one folder a class in each, its name the class's.
_base_ = './imagenet.py'

data_root = 'data/my_images'
train_dataloader = dict(
    batch_size=32,
    drop_last=False,
    dataset=dict(
        _delete_=True,
        type='mmvmamba.CheckedCustomDataset',
        data_root=data_root,
        data_prefix='train',
        pipeline={{_base_.train_pipeline}},
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmvmamba.CheckedCustomDataset',
        _scope_='mmpretrain',
        data_root=data_root,
        data_prefix='val',
        test_mode=True,
        pipeline={{_base_.test_pipeline}},
    )
)
test_dataloader = val_dataloader
