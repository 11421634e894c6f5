"""The feed-forward half of a block."""

import torch
from torch import nn

from mmvmamba.kernels.linear import gelu_mlp

from .linear import Linear


class Mlp(nn.Module):
    """Two linears with GELU between, on the last dimension."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = Linear(channels, hidden)
        self.fc2 = Linear(hidden, channels)
        for linear in (self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., channels)` to `(..., channels)`."""
        return gelu_mlp(x, self.fc1, self.fc2)
