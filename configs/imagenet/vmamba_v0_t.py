# Vanilla VMamba-T on ImageNet-1K, 300 epochs, from scratch as published. Published: 82.2 top-1.
_base_ = './vmamba_t.py'
model = dict(
    # drop path as in the paper and in the authors' config; the file's name says 0.1
    backbone=dict(arch='tiny_v0', drop_path_rate=0.2),
)
# as published, without an average of the weights
custom_hooks = [
    dict(type='mmvmamba.ReproducibleRandomness'),
    dict(type='mmvmamba.NonFiniteGuard', action='stop'),
]
