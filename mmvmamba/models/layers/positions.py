"""Position embeddings of one grid on another."""

import torch
from torch.nn import functional as F

from mmvmamba.kernels.dispatch import full_precision

from .precision import widened


def resize_positions(embedding: torch.Tensor, grid: tuple[int, int], target: tuple[int, int]) -> torch.Tensor:
    """Interpolate `(1, H*W, C)` of a grid bicubically (align_corners False) to `(1, *target, C)`.

    A grid's own size gives back its numbers to the last bit, so no size is a special case for compilers and exporters.
    Bicubic interpolation is linear along each axis: two matrix products cost a fraction of `F.interpolate`.

    Computed in float32 at least; the result has the embedding's dtype.
    """
    wide = widened(embedding[0])
    rows, columns = (_weights(size, new, wide) for size, new in zip(grid, target, strict=True))
    with full_precision(wide.device):
        resized = rows @ wide.unflatten(0, grid).flatten(1)  # (new H, W * C)
        resized = columns @ resized.unflatten(1, (grid[1], -1))  # (new H, new W, C)
    return resized[None].to(embedding.dtype)


def _weights(size: int, new: int, like: torch.Tensor) -> torch.Tensor:
    """`(new, size)`: how much every old position along an axis gives to every new one."""
    each = torch.eye(size, dtype=like.dtype, device=like.device)[None, :, :, None]
    return F.interpolate(each, size=(new, 1), mode='bicubic', align_corners=False)[0, :, :, 0].T


def sincos_positions(grid: tuple[int, int], channels: int) -> torch.Tensor:
    """Fixed sine-cosine embedding `(1, H*W, C)`: the first half of the features says the column, the second the row.

    Each half is `[sin(v w_j), cos(v w_j)]` with `w_j = 10000 ** (-4 j / C)`. mmpretrain's has the halves the other way
    round.

    Source: Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers", arXiv 2104.02057.
    """
    if channels % 4:
        raise ValueError(f'sincos_positions: channels={channels}; expected a multiple of 4')
    quarter = channels // 4
    frequencies = 10000 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = (torch.arange(size, dtype=torch.float64)[:, None] * frequencies for size in grid)
    rows, columns = (torch.cat([t.sin(), t.cos()], dim=1) for t in (rows, columns))
    both = torch.cat([columns[None].expand(grid[0], -1, -1), rows[:, None].expand(-1, grid[1], -1)], dim=2)
    return both.flatten(0, 1)[None].to(torch.get_default_dtype())
