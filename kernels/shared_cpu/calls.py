"""From tensors to the compiled scan: packing into channel blocks, addresses, gradients that need a last sum."""

import math
from typing import NamedTuple

import numpy as np
import torch

from ..ss2d.routes import Route
from . import scan as compiled
from .threads import run


class Group(NamedTuple):
    """One route over D channels of `x`: contiguous float32 tensors, parameters of any layout.

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


def _pack(parameter):
    """`(D,)` to `(blocks, block)`, `(D, n)` to `(blocks, n, block)`; channels that fill the last block up are 0."""
    channels, block = parameter.shape[0], compiled.BLOCK
    blocks = math.ceil(channels / block)
    padded = parameter.new_zeros((blocks * block, *parameter.shape[1:]))
    padded[:channels] = parameter.detach()
    packed = padded.view(blocks, block, *parameter.shape[1:])
    return packed.transpose(1, -1).contiguous() if parameter.ndim == 2 else packed


def _unpack(packed, channels):
    """The inverse of `_pack` for `(blocks, block)` and `(blocks, n, block)`."""
    flat = packed.transpose(1, -1).flatten(0, 1) if packed.ndim == 3 else packed.flatten()
    return flat[:channels]


def address(tensor: torch.Tensor) -> int:
    """Where the numbers of a tensor lie that compiled code will read or write; ValueError if it could not."""
    if tensor.dtype != torch.float32 or not tensor.is_contiguous():
        raise ValueError(
            f'the compiled scan got {tensor.dtype} of shape {tuple(tensor.shape)} and strides {tensor.stride()}; '
            'expected contiguous float32'
        )
    return tensor.data_ptr()


def _record(group, **written):
    """The group as a `ROUTE`, and the tensors that must live as long as it is used."""
    ready = group.x if group.ready is None else group.ready
    tensors = dict(x=group.x, projected=group.projected, ready=ready, **written)
    for name, parameter in (
        ('weight', group.weight),
        ('bias', group.bias),
        ('decay', group.A * math.log2(math.e)),
        ('skip', group.skip),
    ):
        tensors[name] = _pack(parameter)
    height, width = group.grid
    record = np.zeros((), compiled.ROUTE)
    for name, tensor in tensors.items():
        record[name] = address(tensor)
    for name, number in (
        ('length', group.x.shape[1]),
        ('total', group.x.shape[2]),
        ('routes', group.projected.shape[2]),
        ('k', group.k),
        ('rank', group.weight.shape[1]),
        ('states', group.A.shape[1]),
        ('base', group.base),
        ('channels', group.bias.shape[0]),
        ('softplus', group.softplus),
        ('height', height),
        ('width', width),
        *group.route._asdict().items(),
    ):
        record[name] = number
    return record, tensors


def _run(function, records, batch, channels):
    """Run records `(chains, links)`."""
    blocks = math.ceil(channels / compiled.BLOCK)
    job = np.array((0, records.ctypes.data, *records.shape, batch, blocks), compiled.JOB)
    run(function, job.ctypes.data, len(records) * batch * blocks)


def busiest(batch: int, channels: int, chains: int = 1) -> int:
    """Tasks that the busiest thread gets when as many chains as this are scanned."""
    return math.ceil(batch * math.ceil(channels / compiled.BLOCK) * chains / torch.get_num_threads())


def scan_chains(chains: list[list[Group]], outputs: list[torch.Tensor]) -> None:
    """Scan chains of groups; each chain's groups, run one after the other, are summed into its output.

    Args:
        chains: all of the same length, batch, number of channels, rank and states. They run in parallel, so no two
            may write to the same channels of the same output.
        outputs: `(B, L, C)` for each chain, of which the groups' channels are written.
    """
    records = np.zeros((len(chains), len(chains[0])), compiled.ROUTE)
    alive = []
    for i, (chain, y) in enumerate(zip(chains, outputs, strict=True)):
        for j, group in enumerate(chain):
            records[i, j], tensors = _record(group, y=y)
            records[i, j]['add'] = j > 0
            alive.append(tensors)
    first = chains[0][0]
    _run(compiled.forward(), records, first.x.shape[0], first.bias.shape[0])


def scan(group: Group, y: torch.Tensor) -> None:
    """Write the scan of a group to `y (B, L, C)`."""
    scan_chains([[group]], [y])


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
    (batch, length, _), (channels, states), block = group.x.shape, group.A.shape, compiled.BLOCK
    blocks = math.ceil(channels / block)
    dBC = group.x.new_empty(blocks, batch, length, 2 * states)
    ddecay = group.x.new_empty(batch, blocks, states, block)
    dskip = group.x.new_empty(batch, blocks, block)
    record, _alive = _record(group, dy=dy, dx=dx, dz=dz, dBC=dBC, ddecay=ddecay, dskip=dskip)
    record['add'] = add
    _run(compiled.backward(), record[None, None], batch, channels)
    return dBC.sum(0), _unpack(ddecay.sum(0), channels), _unpack(dskip.sum(0), channels)
