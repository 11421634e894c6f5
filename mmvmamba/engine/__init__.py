"""What training and testing need beyond the toolboxes; importing it registers the hooks and constructors."""

from .layer_decay import LayerDecayConstructor
from .randomness import ReproducibleRandomness, seed_worker

__all__ = ['LayerDecayConstructor', 'ReproducibleRandomness', 'seed_worker']
