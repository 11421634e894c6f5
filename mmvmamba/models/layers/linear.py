"""The linear layer of all blocks."""

import torch
from torch import nn

from mmvmamba.kernels.linear import linear


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `mmvmamba.kernels.linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., C)` to `(..., D)`."""
        return linear(x, self.weight, self.bias)
