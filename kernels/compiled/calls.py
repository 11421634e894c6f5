"""From tensors to the compiled scan: packing into channel blocks, choice of the block, threads."""

import functools
import logging
import math
from typing import NamedTuple

import torch

from ..ss2d.routes import Route

_BLOCKS = (32, 48)  # two or three vectors of the widest instructions; 48 divides the usual 96, 192, ...
_BLOCK_COST = 8  # of a task per position, in channels: what is done once whatever the block's width
_logger = logging.getLogger('mmvmamba.kernels')


class Group(NamedTuple):
    """One route over D channels of `x`: what `scan.build` describes, as float32 tensors.

    Attributes:
        x: `(B, L, C)`, of which the channels from `base` on are scanned.
        projected: `(B, L, K, R + 2N)`.
        k: which of the K.
        weight: `(D, R)`; R = 0 if the time steps come in `ready`.
        bias: `(D,)`.
        A: `(D, N)`.
        skip: `(D,)`.
        grid: H and W of the L positions.
        route: how to walk them.
        base: first channel.
        softplus: whether the time step goes through softplus.
        ready: `(B, L, C)` time steps before their bias, or None.
    """

    x: torch.Tensor
    projected: torch.Tensor
    k: int
    weight: torch.Tensor
    bias: torch.Tensor
    A: torch.Tensor
    skip: torch.Tensor
    grid: tuple[int, int]
    route: Route
    base: int = 0
    softplus: bool = True
    ready: torch.Tensor | None = None


@functools.cache
def _functions(block: int):
    _logger.info(
        'CPU scan for blocks of %d channels: its first use on a machine compiles for some seconds, then it is cached',
        block,
    )
    from .scan import build
    from .threads import run

    return tuple(functools.partial(run, *pair) for pair in build(block))


def _block(channels: int, batch: int) -> int:
    """Width of the channel blocks that leaves the busiest thread the least to do."""
    threads = torch.get_num_threads()

    def cost(block):
        tasks = batch * math.ceil(channels / block)
        return math.ceil(tasks / threads) * (block + _BLOCK_COST)

    return min(_BLOCKS, key=cost)


def _pack(parameter, block):
    """`(D,)` to `(blocks, block)`, `(D, n)` to `(blocks, n, block)`; channels that fill the last block up are 0."""
    channels = parameter.shape[0]
    blocks = math.ceil(channels / block)
    padded = parameter.new_zeros((blocks * block, *parameter.shape[1:]))
    padded[:channels] = parameter.detach()
    packed = padded.view(blocks, block, *parameter.shape[1:])
    return packed.transpose(1, -1).contiguous() if parameter.ndim == 2 else packed


def _unpack(packed, channels):
    """The inverse of `_pack` for `(blocks, block)` and `(blocks, n, block)`."""
    flat = packed.transpose(1, -1).flatten(0, 1) if packed.ndim == 3 else packed.flatten()
    return flat[:channels]


def _arguments(group, block):
    packed = (_pack(t, block) for t in (group.weight, group.bias, group.A * math.log2(math.e), group.skip))
    ready = group.x if group.ready is None else group.ready
    arrays = [t.numpy() for t in (group.x, group.projected, ready)]
    channels = group.bias.shape[0]
    return [
        *arrays,
        group.k,
        *(t.numpy() for t in packed),
        group.softplus,
        group.base,
        channels,
        *map(int, group.grid),
        *group.route,
    ]


def scan(group: Group, y: torch.Tensor, add: bool) -> None:
    """Write, or with `add` add, the scan of a group to `y (B, L, C)`."""
    batch, channels = group.x.shape[0], group.bias.shape[0]
    block = _block(channels, batch)
    forward, _ = _functions(block)
    arguments = (*_arguments(group, block), y.numpy(), add)
    forward(arguments, batch * math.ceil(channels / block))


def scan_backward(group: Group, dy, dx, dz, add: bool):
    """Gradients of a group.

    Args:
        group: as for `scan`.
        dy: `(B, L, C)`.
        dx: `(B, L, C)`, written or, with `add`, added to.
        dz: `(B, L, C)`, written: of the time step before softplus.
        add: see `dx`.

    Returns:
        dBC `(B, L, 2N)`, dA `(D, N)`, dskip `(D,)`.
    """
    (batch, length, _), (channels, states) = group.x.shape, group.A.shape
    block = _block(channels, batch)
    blocks = math.ceil(channels / block)
    _, backward = _functions(block)
    dBC = torch.empty(blocks, batch, length, 2 * states)
    dA = torch.empty(batch, blocks, states, block)
    dskip = torch.empty(batch, blocks, block)
    written = [t.numpy() for t in (dz, dBC, dA, dskip)]
    arguments = (dy.numpy(), *_arguments(group, block), dx.numpy(), add, *written)
    backward(arguments, batch * blocks)
    return dBC.sum(0), _unpack(dA.sum(0), channels), _unpack(dskip.sum(0), channels)
