"""What decides which variants a call launches, found in microseconds: images of other sizes come at every step."""

import functools

import torch

from ..shared_triton import scan
from ..shared_triton.routes import is_large
from .probe import LAYOUTS

_BLOCKS = (32, 64)
"""Channels that a program of a walk may have."""

_LONGEST_TILE = 32
"""No kernel asks whether a line is longer than this."""

_WIDEST = 2048
"""Numbers of a pixel. So many pixels that 32 bits might not count their numbers are a fact of their own."""


def facts(operator: str, direction: str, arguments: tuple) -> tuple:
    """More than enough to tell the variants of two calls apart: equal facts, equal variants.

    That is all arguments but the image's size, and of that what the hosts ask: whether there is anything to do, whether
    a walk is cut into chunks, how long lines are beside a tile, whether they need another division or numbers more
    bits.
    """
    layout = LAYOUTS[operator]
    first = (1 + (layout.saved is not None)) if direction == 'backward' else 0
    before, tensors = arguments[:first], arguments[first : first + len(layout.tensors)]
    options = arguments[first + len(layout.tensors) :]
    shape = tensors[0].shape
    planes = 1
    if len(shape) == 4:
        batch, height, width, channels = shape
    elif len(shape) == 5:
        batch, height, width, planes, channels = shape
    else:
        (batch, channels, width), height = shape, 1
    positions = length = height * width * planes
    walks = 1
    if operator in ('pooled_scan', 'pooled_scan_planes'):
        walks, channels = 2, channels // 2
        if options[1] is not None:
            length = planes * (height if options[0] == 'row' else width)
    elif operator == 'selective_scan':
        walks = tensors[3].shape[1]
        channels //= walks
    elif operator in ('ss2d', 'ss2d_norm'):
        walks = tensors[1].shape[0]
    device = tensors[0].device
    programs = [max(1, batch * walks * -(-channels // block)) for block in _BLOCKS]
    cut = tuple([scan.chunking(count, length, device)[0] > 1 for count in programs])
    return (
        operator,
        direction,
        device,
        *(t.dtype for t in before),
        *map(_described, tensors, _is_grid(operator)),
        *options,
        channels,
        planes,
        batch == 0,
        cut,
        min(height, _LONGEST_TILE).bit_length(),
        min(width, _LONGEST_TILE).bit_length(),
        is_large(positions, height),
        *(size if size * max(channels, _WIDEST) >> 31 else 0 for size in (positions, batch * positions)),
    )


def _described(tensor: torch.Tensor | None, grid: bool):
    if tensor is None:
        return None
    return tensor.dtype if grid else (tensor.dtype, tensor.shape)


@functools.cache
def _is_grid(operator: str) -> tuple[bool, ...]:
    layout = LAYOUTS[operator]
    return tuple(name in layout.grid for name in layout.tensors)
