# Shared by detection and segmentation. `_scope_`, here and there in this folder, names the toolbox of what an
# inferencer builds: it runs in our scope when it was given one of our names.
custom_imports = dict(imports=['mmvmamba.models'], allow_failed_imports=False)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
vis_backends = [dict(type='LocalVisBackend')]
log_level = 'INFO'
load_from = None
resume = False

# The published recipes train 16 images a step; --auto-scale-lr scales the learning rate to other batch sizes.
auto_scale_lr = dict(enable=False, base_batch_size=16)

# What a run draws at random depends on the seed and the position in training, so a resumed run repeats itself.
randomness = dict(seed=0)
custom_hooks = [
    dict(type='mmvmamba.ReproducibleRandomness'),
    dict(type='mmvmamba.NonFiniteGuard', action='stop'),  # or 'skip'
]
