"""Weights on their way into a run: `load_from` and `resume` of mmengine's runners, as strict as `checkpoints.load`."""

from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import MODELS
from torch import nn

from mmvmamba import checkpoints
from mmvmamba.registry import HOOKS


@HOOKS.register_module()
class StrictLoading(Hook):
    """Translate what a runner has read to its model's names, and refuse what does not fit, before it is loaded.

    `load_from` takes a detector or segmentor, or a backbone alone (a classifier), whose model stays fresh else. What
    stays fresh is in the log. `resume` takes its own model only.

    Args:
        fresh_heads: see `checkpoints.load`; for `load_from`.
    """

    priority = 'VERY_HIGH'  # before the averaged weights take their copy

    def __init__(self, fresh_heads: bool = False):
        self.fresh_heads = fresh_heads

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Put what the model takes into the checkpoint's entry `state_dict`.

        Raises:
            CheckpointError: see `checkpoints.load`.
        """
        source = str(runner._load_from or runner._resume)
        if Path(source).is_dir():  # shards, which their strategy loads strictly
            return
        resuming, sharded = bool(runner._resume), _is_sharded(runner.model)
        options = {} if resuming else dict(fresh_heads=self.fresh_heads, backbone_alone=True)
        try:
            fitted, report = checkpoints.fit(checkpoint, _plain(runner), source, **options)
            if resuming and not sharded:
                _refuse_other_optimizer(checkpoint.get('optimizer'), getattr(runner, 'optim_wrapper', None), source)
        except checkpoints.CheckpointError as error:
            if not resuming:
                raise
            raise checkpoints.CheckpointError(
                f'cannot resume: {error}\nOnly the training that wrote a checkpoint can be resumed from it. To start '
                f'another one from its weights: --cfg-options load_from={source} instead of --resume'
            ) from error
        checkpoint['state_dict'] = fitted
        runner.logger.info(f'{type(self).__name__}: {report}')
        if report.fresh:
            runner.logger.warning('These tensors start from scratch:\n  ' + '\n  '.join(report.fresh))


def _is_sharded(model: nn.Module) -> bool:
    return any(hasattr(module, '_fsdp_wrapped_module') for module in model.modules())


def _plain(runner) -> nn.Module:
    """The runner's model without a wrapper; built anew where the wrapper keeps its parameters in shards."""
    if not _is_sharded(runner.model):
        return runner.model.module if is_model_wrapper(runner.model) else runner.model
    with torch.random.fork_rng(devices=[]):
        return MODELS.build(runner.cfg.model)


def _refuse_other_optimizer(state, wrapper, source: str) -> None:
    theirs = state.get('param_groups') if isinstance(state, Mapping) else None
    ours = getattr(getattr(wrapper, 'optimizer', None), 'param_groups', None)  # the wrapper's own has one more
    if not isinstance(theirs, list) or not isinstance(ours, list):  # several optimizers, each with groups of its own
        return
    sizes = [[len(group['params']) for group in groups] for groups in (theirs, ours)]
    if sizes[0] != sizes[1]:
        raise checkpoints.CheckpointError(
            f'{source} has the state of an optimizer with {sum(sizes[0])} parameters in {len(sizes[0])} groups; the '
            f'optimizer of this config has {sum(sizes[1])} in {len(sizes[1])}: optim_wrapper.paramwise_cfg, its '
            f'constructor or frozen layers differ'
        )
