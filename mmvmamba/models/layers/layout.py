"""Changes between the two layouts of a feature map, both views."""

import torch
from torch import nn


class ToChannelsLast(nn.Module):
    """`(B, C, H, W)` to `(B, H, W, C)`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


class ToChannelsFirst(nn.Module):
    """`(B, H, W, C)` to `(B, C, H, W)`, the layout (not the memory order) that convolutions expect."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 3, 1, 2)
