"""Position embeddings of one grid on another."""

import torch
from torch.nn import functional as F

from mmvmamba.kernels.dispatch import full_precision


def resize_positions(embedding: torch.Tensor, grid: tuple[int, int], target: tuple[int, int]) -> torch.Tensor:
    """Interpolate `(1, H*W, C)` of a grid bicubically (align_corners False) to `(1, *target, C)`.

    A grid's own size gives back its numbers to the last bit, so no size is a special case for compilers and exporters.
    Bicubic interpolation is linear along each axis: two matrix products cost a fraction of `F.interpolate`.

    Computed in float32 at least; the result has the embedding's dtype.
    """
    wide = embedding[0].to(torch.promote_types(embedding.dtype, torch.float32))
    rows, columns = (_weights(size, new, wide) for size, new in zip(grid, target, strict=True))
    with full_precision(wide.device):
        resized = rows @ wide.unflatten(0, grid).flatten(1)  # (new H, W * C)
        resized = columns @ resized.unflatten(1, (grid[1], -1))  # (new H, new W, C)
    return resized[None].to(embedding.dtype)


def _weights(size: int, new: int, like: torch.Tensor) -> torch.Tensor:
    """`(new, size)`: how much every old position along an axis gives to every new one."""
    each = torch.eye(size, dtype=like.dtype, device=like.device)[None, :, :, None]
    return F.interpolate(each, size=(new, 1), mode='bicubic', align_corners=False)[0, :, :, 0].T
