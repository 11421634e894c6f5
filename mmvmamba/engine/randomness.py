"""Random numbers that depend on the seed and the position in training alone, so that a resumed run repeats itself."""

import random

import numpy as np
import torch
from mmengine.hooks import Hook

from mmvmamba.registry import FUNCTIONS, HOOKS

_PRIME = 1_000_003


@HOOKS.register_module()
class ReproducibleRandomness(Hook):
    """Seed every generator of the process anew at each epoch and each iteration.

    mmengine seeds once, at the start, so what a resumed run draws differs from what the uninterrupted run drew. Drop
    path, dropout, the samplers of the detection heads and (through `seed_worker`) the augmentations then repeat
    exactly. Costs microseconds an iteration.
    """

    priority = 'VERY_HIGH'

    def _seed(self, runner, position: int) -> None:
        seed = (runner.seed * _PRIME + position * 2 + 1 + runner.rank * 7919) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def before_train(self, runner) -> None:
        self._seed(runner, -1)

    def before_train_epoch(self, runner) -> None:
        self._seed(runner, runner.epoch)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self._seed(runner, runner.iter)


@FUNCTIONS.register_module()
def seed_worker(worker_id: int) -> None:
    """`worker_init_fn` of a data loader: seed numpy and random from what PyTorch drew for this worker and epoch."""
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)
