# Vanilla VMamba-T on ImageNet-1K, 300 epochs, from scratch as published. Published: 82.2 top-1, without averaging the
# weights. Drop path is that of the paper and of the authors' config; the file's name says 0.1.
_base_ = './vmamba_t.py'
model = dict(
    backbone=dict(arch='tiny_v0', drop_path_rate=0.2),
)
custom_hooks = [
    dict(type='mmvmamba.ReproducibleRandomness'),
    dict(type='mmvmamba.NonFiniteGuard', action='stop'),
]
