"""What training and testing need beyond the toolboxes; importing it registers the hooks."""

from .randomness import ReproducibleRandomness, seed_worker

__all__ = ['ReproducibleRandomness', 'seed_worker']
