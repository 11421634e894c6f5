# Classification with a running average of the weights, which is what is validated and the `state_dict` of checkpoints.
_base_ = './runtime_cls.py'

custom_hooks = [
    dict(type='mmvmamba.ReproducibleRandomness'),
    dict(type='mmvmamba.NonFiniteGuard', action='stop'),  # or 'skip'
    dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL'),
]
