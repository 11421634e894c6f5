"""Stochastic depth."""

import torch
from torch import nn


class DropPath(nn.Module):
    """Drop a residual branch for whole samples while training, and scale what is kept so that its mean stays.

    Args:
        rate: probability of dropping, in [0, 1).

    Source: Huang et al., "Deep Networks with Stochastic Depth", arXiv 1603.09382.
    """

    def __init__(self, rate: float):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f'DropPath: rate={rate!r} must lie in [0, 1)')
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, ...)` to `(B, ...)`."""
        if self.rate == 0 or not self.training:
            return x
        keep = 1 - self.rate
        mask = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep)
        return x * mask.div_(keep)

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3g}'
