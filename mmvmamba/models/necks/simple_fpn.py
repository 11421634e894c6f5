"""Feature pyramid of a backbone that has one resolution only."""

from collections.abc import Mapping, Sequence

import torch
from mmengine.model import BaseModule
from torch import nn
from torch.nn import functional as F

from mmvmamba.registry import register_model


@register_model
class LN2d(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel of `(B, C, H, W)`: `norm_cfg=dict(type='LN2d')`."""

    def __init__(self, num_channels: int, eps: float = 1e-6):
        super().__init__(num_channels, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class HalvingMaxPool(nn.MaxPool2d):
    """Maxima of 2 x 2 squares; odd sides are rounded up, so that one row of tokens still has a coarser level.

    Padded and rounded down, which is the same: exporters cannot follow PyTorch's own rounding up to every size.
    """

    def __init__(self):
        super().__init__(2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1), value=float('-inf')))


def _resample(scale: float, channels: int) -> tuple[list[nn.Module], int]:
    """Layers that scale a map, and the channels they leave."""
    if scale == 4:
        first = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        second = nn.ConvTranspose2d(channels // 2, channels // 4, 2, stride=2)
        return [first, LN2d(channels // 2), nn.GELU(), second], channels // 4
    if scale == 2:
        return [nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)], channels // 2
    if scale == 0.5:
        return [HalvingMaxPool()], channels
    return [], channels


_SCALES = (4, 2, 1, 0.5)


@register_model
class SimpleFPN(BaseModule):
    """Build a pyramid from one map: scale it up and down, then a 1x1 and a 3x3 convolution per level.

    Args:
        in_channels: channels of the map, a multiple of 4.
        out_channels: channels of every level.
        num_outs: levels; those beyond `scales` halve the last one by taking every second pixel.
        scales: of the levels relative to the map, out of 4, 2, 1 and 0.5, descending.
        init_cfg: mmengine's initialisation config.

    Raises:
        ValueError: an argument out of range, by name.

    Source: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", arXiv 2203.16527, section 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int = 5,
        scales: Sequence[float] = _SCALES,
        init_cfg: Mapping | Sequence[Mapping] | None = None,
    ):
        super().__init__(init_cfg=init_cfg)
        name = type(self).__name__
        if not isinstance(in_channels, int) or in_channels <= 0 or in_channels % 4:
            raise ValueError(f'{name}: in_channels={in_channels!r}; expected one positive multiple of 4')
        scales = tuple(scales)
        if not scales or scales != tuple(scale for scale in _SCALES if scale in scales):
            raise ValueError(f'{name}: scales={scales!r}; expected a descending choice out of {_SCALES}')
        if num_outs < len(scales):
            raise ValueError(f'{name}: num_outs={num_outs!r}; expected at least {len(scales)}, the number of scales')
        self.in_channels = in_channels
        self.num_outs = num_outs
        self.levels = nn.ModuleList()
        for scale in scales:
            resample, channels = _resample(scale, in_channels)
            self.levels.append(
                nn.Sequential(
                    *resample,
                    nn.Conv2d(channels, out_channels, 1, bias=False),
                    LN2d(out_channels),
                    nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                    LN2d(out_channels),
                )
            )

    def forward(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """One map `(B, in_channels, H, W)` in a tuple to `num_outs` contiguous maps, finest first."""
        name = type(self).__name__
        if len(inputs) != 1:
            raise ValueError(
                f'{name}: got {len(inputs)} maps; expected one: give the backbone one index in out_indices'
            )
        if inputs[0].shape[1] != self.in_channels:
            raise ValueError(
                f'{name}: the map has shape {tuple(inputs[0].shape)}; expected (B, {self.in_channels}, H, W)'
            )
        # a copy: mmcv's RoIAlign reads memory as channels first whatever the strides say
        outs = [level(inputs[0]).contiguous() for level in self.levels]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)
