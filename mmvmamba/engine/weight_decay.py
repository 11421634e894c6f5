"""Weight decay that changes during training."""

import math

from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.param_scheduler import INF, _ParamScheduler
from torch.optim import Optimizer

from mmvmamba.registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class CosineWeightDecay(_ParamScheduler):
    """Let weight decay go along half a cosine from what the optimizer has to `final` times as much.

    Parameters without weight decay keep having none, and those with a multiple of it keep that multiple; mmengine's
    cosine for any parameter would give all groups the same.

    Args:
        optimizer: or the wrapper of one.
        ratio: of weight decay at the end to that at the beginning.
        begin, end: iterations, or epochs where `by_epoch`; `end` must be given.
        by_epoch: whether to step every epoch. With `convert_to_iter_based=True` in a config, every iteration.
        last_step, verbose: see mmengine.

    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", arXiv 2104.14294, implementation
    details.
    """

    def __init__(
        self,
        optimizer: Optimizer | OptimWrapper,
        ratio: float,
        begin: int = 0,
        end: int = INF,
        last_step: int = -1,
        by_epoch: bool = True,
        verbose: bool = False,
    ):
        if ratio < 0 or end == INF:
            raise ValueError(
                f'CosineWeightDecay: ratio={ratio!r}, end={end!r}; expected a ratio from 0 up and the last step'
            )
        self.ratio = ratio
        self.total_iters = end - begin - 1
        super().__init__(optimizer, 'weight_decay', begin, end, last_step, by_epoch, verbose)

    @classmethod
    def build_iter_from_epoch(cls, *args, begin=0, end=INF, by_epoch=True, epoch_length=None, **kwargs):
        """Build one that steps every iteration from epochs; what mmengine's `convert_to_iter_based` calls."""
        if not by_epoch or not epoch_length:
            raise ValueError(
                f'CosineWeightDecay: by_epoch={by_epoch!r}, epoch_length={epoch_length!r}; only epochs of a known '
                f'length are converted to iterations'
            )
        begin, end = int(begin * epoch_length), int(end * epoch_length) if end != INF else end
        return cls(*args, begin=begin, end=end, by_epoch=False, **kwargs)

    def _get_value(self) -> list[float]:
        progress = min(self.last_step / max(self.total_iters, 1), 1.0)
        factor = self.ratio + (1 - self.ratio) * (1 + math.cos(math.pi * progress)) / 2
        return [base * factor for base in self.base_values]
