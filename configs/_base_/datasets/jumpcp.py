# JUMP-CP, plate BR00116991 of compounds, split as published: images, not wells. split_by='well' is what tells how well
# a model knows wells that it has not seen.
train_pipeline = [
    dict(type='mmvmamba.LoadPlanes', channels=8),
    dict(type='mmvmamba.PadAndRandomCrop', pad=256, crop=224),
    dict(type='mmvmamba.RandomFlipOrRotate', prob=0.5),
    dict(type='mmvmamba.RandomDefocus', radius=(1, 3), prob=0.5),
    dict(type='mmvmamba.RandomHoles', count=10, side=10, prob=0.5),
    dict(type='PackInputs', _scope_='mmpretrain'),
]
test_pipeline = [dict(type='mmvmamba.LoadPlanes', channels=8), dict(type='PackInputs', _scope_='mmpretrain')]
plate = dict(
    type='mmvmamba.JumpCPDataset',
    data_root='data/jumpcp',
    tables='BR00116991.pq',
    plate_map='JUMP-Target-1_compound_platemap.tsv',
    metadata='JUMP-Target-1_compound_metadata.tsv',
    target='target',
    split_by='image',
)
loader = dict(batch_size=32, num_workers=8, collate_fn=dict(type='default_collate'))
train_dataloader = dict(
    **loader,
    # workers start anew each epoch, seeded by ReproducibleRandomness: what they draw survives a resume
    persistent_workers=False,
    worker_init_fn=dict(type='mmvmamba.seed_worker'),
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**plate, split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    **loader,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**plate, split='val', test_mode=True, pipeline=test_pipeline),
)
test_dataloader = dict(
    **loader,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**plate, split='test', test_mode=True, pipeline=test_pipeline),
)
