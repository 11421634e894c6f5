"""The scan's gradients on a GPU: states are recomputed, of the size of all routes only their gradient of x is kept.

`tile_state` keeps the state that enters every tile; in chunks `chunk_state_bwd` keeps what `state_passing` and its
reverse need as well: of every chunk the sum of the time steps, end state, adjoint. `chunk_scan_bwd` does the rest.
"""

from typing import NamedTuple

import torch
import triton

from .chunk_scan_bwd import chunk_scan_bwd
from .launch import Launch, on_device, planned
from .numerics import BT
from .scan import Form, Walks, chunking, form_of, machine, passing_launch, scan_launch, spec
from .spec import IN_REGISTERS, scan_bwd_block
from .state_passing import reverse_state_passing, state_passing
from .sums import add_up, collecting
from .tile_state import chunk_state_bwd, tile_state


class Gradients(NamedTuple):
    """What `scan_backward` returns, float32 but for x and projected.

    Attributes:
        x: `(K, B, L, D)`, one buffer a walk; grouped walks `(B, L, K*D)`. In the dtype of the routes' buffers.
        projected: `(B, L, K, R + 2N)`.
        ready: `(B, L, K*D)`, or None.
        weight: `(K, D, R)`.
        bias, skip: `(K*D,)`.
        A: `(K*D, N)`.
    """

    x: torch.Tensor
    projected: torch.Tensor
    ready: torch.Tensor | None
    weight: torch.Tensor
    bias: torch.Tensor
    skip: torch.Tensor
    A: torch.Tensor


class _Plan(NamedTuple):
    """A backward pass as its form fixes it: shapes of its buffers (None: not needed), launches and their sizes."""

    dx: tuple[int, ...]
    dprojected: tuple[int, ...]
    dsteps: tuple[int, ...]
    sums: tuple[int, ...]
    tiles: tuple[int, ...]
    tile_sums: tuple[int, ...] | None
    chunk_sums: tuple[int, ...] | None
    states: tuple[int, ...] | None
    adjoints: tuple[int, ...] | None
    prepare: Launch
    state_passing: Launch | None
    reverse_state_passing: Launch | None
    chunk_scan_bwd: Launch
    collect: Launch
    chunks: int
    sizes: dict[str, int]


@planned
def _plan(form: Form, dtypes: tuple[torch.dtype, torch.dtype], machine: tuple[int, int]) -> _Plan:
    batch, length, count, channels = form.batch, form.length, form.count, form.channels
    states, rank = form.states, form.rank
    block = scan_bwd_block(channels, states)
    blocks = triton.cdiv(channels, block)
    programs = batch * count * blocks
    chunks, chunk = chunking(max(1, programs), length, form.device)
    tiles = triton.cdiv(length, BT)
    cut = chunks > 1
    of_all = (batch, length, count * channels)
    of_chunks = (batch, chunks, count, states, channels) if cut or states > IN_REGISTERS else None
    return _Plan(
        dx=of_all if form.grouped else (count, batch, length, channels),
        dprojected=(blocks, batch, length, count, rank + 2 * states),
        dsteps=of_all if form.ready else (batch, chunks, count, rank, channels),
        sums=(batch, chunks, count, states + 2, channels),
        tiles=(batch, tiles, count, states, channels),
        tile_sums=(batch, tiles, count, channels) if cut else None,
        chunk_sums=(batch, chunks, count, channels) if cut else None,
        states=of_chunks,
        adjoints=of_chunks,
        prepare=scan_launch(chunk_state_bwd if cut else tile_state, form, chunks, chunked=cut),
        state_passing=passing_launch(state_passing, form) if cut else None,
        reverse_state_passing=passing_launch(reverse_state_passing, form) if cut else None,
        chunk_scan_bwd=Launch(
            chunk_scan_bwd,
            programs * chunks,
            SPEC=spec(form, block, 1, cut),
            **scan_bwd_options(block),
        ),
        collect=collecting(count, channels, states, 2, rank),
        chunks=chunks,
        sizes=dict(H=form.grid[0], W=form.grid[1], T=chunk),
    )


def scan_bwd_options(block: int) -> dict:
    """How `chunk_scan_bwd` is compiled: a lane a channel."""
    return dict(num_warps=block // 32, num_stages=1)


def _prepare(plan: _Plan, walks: Walks, dy: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """What `chunk_scan_bwd` needs beside the inputs: states of tiles, and in chunks what enters those."""
    x = walks.x

    def empty(shape):
        return None if shape is None else x.new_empty(shape, dtype=torch.float32)

    tiles, tile_sums, states, adjoints = map(empty, (plan.tiles, plan.tile_sums, plan.states, plan.adjoints))
    inputs = walks.tensors()
    if plan.state_passing is None:
        plan.prepare.start(inputs | dict(p_tiles=tiles, p_states=states) | plan.sizes)
    else:
        sums = empty(plan.chunk_sums)
        found = dict(p_dy=dy, p_tiles=tiles, p_tile_sums=tile_sums, p_sums=sums, p_states=states, p_adjoints=adjoints)
        plan.prepare.start(inputs | found | plan.sizes)
        plan.state_passing.start(dict(p_A=walks.A, p_sums=sums, p_states=states, chunks=plan.chunks))
        plan.reverse_state_passing.start(dict(p_A=walks.A, p_sums=sums, p_states=adjoints, chunks=plan.chunks))
    return dict(p_tiles=tiles, p_tile_sums=tile_sums, p_states=states, p_adjoints=adjoints)


def scan_backward(walks: Walks, dy: torch.Tensor, dtype: torch.dtype, projected_dtype=torch.float32) -> Gradients:
    """Gradients of `scan`.

    Args:
        walks: what was scanned.
        dy: shaped as x, `dense`: `(B, L, D)`, which all walks share, or `(B, L, K*D)`.
        dtype: of x's gradients.
        projected_dtype: of the projections' gradients.
    """
    x = walks.x
    plan = _plan(form_of(walks), (dy.dtype, dtype), machine(x.device))
    batch, single = x.shape[0], torch.float32
    dx = x.new_empty(plan.dx, dtype=dtype)
    dprojected, dsteps, sums = (x.new_empty(t, dtype=single) for t in (plan.dprojected, plan.dsteps, plan.sums))
    dA, dskip_bias, dweight = (
        x.new_empty(shape, dtype=single) for shape in (walks.A.shape, (2, *walks.skip.shape), walks.weight.shape)
    )
    if batch:
        with on_device(x):
            prepared = _prepare(plan, walks, dy)
            grads = dict(p_dx=dx, p_dprojected=dprojected, p_dsteps=dsteps, p_sums=sums)
            others = dict(p_dy=dy, p_skip=walks.skip, B=batch)
            plan.chunk_scan_bwd.start(walks.tensors() | others | prepared | grads | plan.sizes)
            plan.collect((sums, dsteps, dA, dskip_bias, dweight), batch * plan.chunks)
    else:
        for t in (dA, dskip_bias, dweight):
            t.zero_()
    if plan.dprojected[0] > 1 or projected_dtype != torch.float32:
        dprojected = add_up(dprojected, projected_dtype)
    else:
        dprojected = dprojected[0]
    dskip, dbias = dskip_bias
    return Gradients(dx, dprojected, None if walks.ready is None else dsteps, dweight, dbias, dskip, dA)
