"""Random numbers that depend on the seed and the position in training alone, so that a resumed run repeats itself."""

import random

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from torch.utils.data import get_worker_info

from mmvmamba.registry import FUNCTIONS, HOOKS

_MODEL, _DATA, _EPOCH = range(3)  # streams that must not repeat each other
_PLACE = 'mmvmamba_place_in_training'


def _seed_all(*position: int) -> None:
    """Seed every generator of this process from a position: equal positions draw equal numbers, others do not."""
    words = np.random.SeedSequence(position).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))


def seed_iteration(runner, iteration: int) -> None:
    """Seed what the model draws in an iteration."""
    _seed_all(runner.seed, _MODEL, iteration, runner.rank)


@HOOKS.register_module()
class ReproducibleRandomness(Hook):
    """Seed every generator anew at each epoch and each iteration.

    mmengine seeds once, at the start, so what a resumed run draws differs from what the uninterrupted run drew. With
    this, drop path, dropout, the samplers of the detection heads and (through `seed_worker`) the augmentations repeat
    exactly.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner) -> None:
        """Seed what the data loader draws as it starts: the seed of its workers or, without workers, its data."""
        loader = runner.train_dataloader
        size = getattr(loader.batch_sampler, 'batch_size', 1)
        runner.message_hub.update_info(_PLACE, (runner.iter, size, runner.rank, runner.world_size))
        if loader.num_workers:
            _seed_all(runner.seed, _EPOCH, runner.epoch)  # the same on every rank
        else:
            _seed_all(runner.seed, _DATA, runner.iter, runner.rank)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        seed_iteration(runner, runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        _seed_all(runner.seed, _DATA, runner.iter + 1, runner.rank)


@FUNCTIONS.register_module()
def seed_worker(worker_id: int) -> None:
    """`worker_init_fn` of a data loader: seed each sample by its place in the order that all processes share.

    So neither the batches that a resume has skipped nor the number of processes changes what is drawn for a sample.
    """
    info = get_worker_info()
    dataset, seed = info.dataset, (info.seed - info.id) % 2**63
    first, batch_size, rank, world_size = MessageHub.get_current_instance().get_info(_PLACE) or (0, 1, 0, 1)
    batch = first + worker_id

    def fetch(indices):
        nonlocal batch
        samples = []
        for i, index in enumerate(indices):
            _seed_all(seed, (batch * batch_size + i) * world_size + rank)
            samples.append(dataset[index])
        batch += info.num_workers
        return samples

    dataset.__getitems__ = fetch  # which PyTorch calls, where a dataset has it, with the indices of a whole batch
