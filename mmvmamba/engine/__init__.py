"""What training and testing need beyond the toolboxes; importing it registers the hooks and constructors."""

from .durable import DurableCheckpointHook
from .layer_decay import LayerDecayConstructor
from .loading import StrictLoading
from .mixed_precision import CpuAmpOptimWrapper
from .nonfinite import NonFiniteGuard
from .pictures import ClassificationPictures
from .randomness import ReproducibleRandomness, seed_worker
from .sharding import wrap_blocks
from .weight_decay import CosineWeightDecay

__all__ = [
    'ClassificationPictures',
    'CosineWeightDecay',
    'CpuAmpOptimWrapper',
    'DurableCheckpointHook',
    'LayerDecayConstructor',
    'NonFiniteGuard',
    'ReproducibleRandomness',
    'StrictLoading',
    'seed_worker',
    'wrap_blocks',
]
