"""The scan forward on a GPU, for every operator: in one pass, or in chunks where there are too few programs.

A scan of few images and channels does not fill the machine. It is then cut into chunks: `chunk_state` finds what every
chunk adds to the state, `state_passing` hands states from chunk to chunk, `chunk_scan` scans every chunk from its true
start. Nothing waits for another program, so results never depend on timing.
"""

import math
from typing import NamedTuple

import torch
import triton

from .chunk_scan import chunk_scan
from .chunk_state import chunk_state
from .launch import Launch, on_device, planned
from .numerics import BT, launch_options, multiprocessors, numerics
from .routes import is_large
from .spec import IN_REGISTERS, Spec, rank_block, scan_block
from .state_passing import state_passing

PROGRAMS_PER_MULTIPROCESSOR = 8
"""Below half of this many programs (each one warp) a scan is cut: two warps to hide each other on every scheduler."""

SHORTEST_CHUNK = 64
"""Positions; shorter chunks would spend more on passing states than they win."""


class Walks(NamedTuple):
    """K walks over every image and what they scan; all tensors `numerics.dense`.

    Attributes:
        x: `(B, L, D)` that all walks share, or `(B, L, K*D)` with a slice for each (`grouped`).
        projected: `(B, L, K, R + 2N)`: low-rank time steps, Bs, Cs.
        ready: `(B, L, K*D)` time steps before their bias, with R = 0; or None.
        weight: `(K, D, R)` float32.
        bias, skip: `(K*D,)` float32.
        A: `(K*D, N)` float32.
        grid: H and W of the L positions.
        columns, reverses, keeps: bit k set if walk k goes by columns, backwards, keeps the output order.
        grouped: see `x`.
        softplus: whether the time step goes through softplus.
    """

    x: torch.Tensor
    projected: torch.Tensor
    ready: torch.Tensor | None
    weight: torch.Tensor
    bias: torch.Tensor
    skip: torch.Tensor
    A: torch.Tensor
    grid: tuple[int, int]
    columns: int = 0
    reverses: int = 0
    keeps: int = 0
    grouped: bool = False
    softplus: bool = True

    def tensors(self) -> dict[str, torch.Tensor]:
        """What every kernel that scans reads."""
        steps = self.weight if self.ready is None else self.ready
        return dict(p_x=self.x, p_projected=self.projected, p_steps=steps, p_bias=self.bias, p_A=self.A)


class Form(NamedTuple):
    """All that decides which kernels scan, over how many programs: what plans are kept by."""

    device: torch.device
    dtype: torch.dtype
    projected_dtype: torch.dtype
    batch: int
    length: int
    count: int
    channels: int
    states: int
    rank: int
    ready: bool
    grid: tuple[int, int]
    columns: int
    reverses: int
    keeps: int
    grouped: bool
    softplus: bool


def form_of(walks: Walks) -> Form:
    """What of walks is no data."""
    x, projected, ready, weight, _, _, A, *pattern = walks
    batch, length, _ = x.shape
    return Form(
        *(x.device, x.dtype, projected.dtype, batch, length, *weight.shape[:2], A.shape[1], weight.shape[2]),
        *(ready is not None, *pattern),
    )


def arithmetic_of(form: Form) -> dict:
    """See `numerics.numerics`; ready time steps cost no product: nothing is won by less than full precision."""
    return numerics(form.device, torch.float32 if form.ready else form.dtype)


def machine(device: torch.device) -> tuple[int, int]:
    """What `chunking` goes by, for keeping plans."""
    return PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device), SHORTEST_CHUNK


def chunking(programs: int, length: int, device: torch.device) -> tuple[int, int]:
    """Number of chunks and their length, a whole number of tiles: 1 chunk if so many programs fill the machine."""
    wanted = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device)
    if 2 * programs >= wanted:
        return 1, BT * math.ceil(length / BT)
    chunk = max(SHORTEST_CHUNK, math.ceil(length * programs / wanted))
    chunk = BT * math.ceil(chunk / BT)
    return math.ceil(length / chunk), chunk


def spec(form: Form, block: int, vector: int, chunked: bool) -> Spec:
    """What is compiled into a kernel that scans with `block` channels a program, `vector` of them a lane."""
    arithmetic = arithmetic_of(form)
    return Spec(
        K=form.count,
        D=form.channels,
        N=form.states,
        R=form.rank,
        RB=rank_block(form.rank, form.states, arithmetic['OPERAND']),
        COLUMNS=form.columns,
        REVERSES=form.reverses,
        KEEPS=form.keeps,
        GROUPED=form.grouped,
        SOFTPLUS=form.softplus,
        CHUNKED=chunked,
        BL=BT,
        BD=block,
        VECTOR=vector,
        LONG_LINES=form.grid[0] >= BT,
        LARGE=is_large(form.length, form.grid[0]),
        **arithmetic,
    )


def scan_options(states: int, exact: bool, cuda: bool) -> dict:
    """How kernels that scan forward are compiled."""
    return launch_options(1, all_registers=cuda and (exact or states > IN_REGISTERS))


def scan_launch(kernel, form: Form, chunks: int, chunked: bool) -> Launch:
    """A kernel that scans forward."""
    arithmetic = arithmetic_of(form)
    block = scan_block(form.channels, form.states, form.rank, arithmetic['EXACT'])
    return Launch(
        kernel,
        form.batch * form.count * triton.cdiv(form.channels, block) * chunks,
        SPEC=spec(form, block, block // 32, chunked),
        **scan_options(form.states, arithmetic['EXACT'], arithmetic['FAST']),
    )


def passing_launch(kernel, form: Form) -> Launch:
    """`state_passing`, or its reverse."""
    block = 32
    grid = form.batch * form.count * form.states * triton.cdiv(form.channels, block)
    return Launch(kernel, grid, K=form.count, D=form.channels, N=form.states, BD=block, num_warps=1)


class _Plan(NamedTuple):
    """A scan as its form fixes it: the shapes of its buffers (None: not needed), its launches and their numbers."""

    y: tuple[int, ...]
    sums: tuple[int, ...] | None = None
    states: tuple[int, ...] | None = None
    chunk_state: Launch | None = None
    state_passing: Launch | None = None
    chunk_scan: Launch | None = None
    chunks: int = 0
    sizes: dict[str, int] | None = None


@planned
def _plan(form: Form, dtype: torch.dtype, machine: tuple[int, int]) -> _Plan:
    batch, length, count, channels, states = form.batch, form.length, form.count, form.channels, form.states
    y = (batch, length, count * channels) if form.grouped else (count, batch, length, channels)
    if batch == 0:
        return _Plan(y)
    block = scan_block(channels, states, form.rank, arithmetic_of(form)['EXACT'])
    chunks, chunk = chunking(batch * count * triton.cdiv(channels, block), length, form.device)
    cut = chunks > 1
    return _Plan(
        y,
        sums=(batch, chunks, count, channels) if cut else None,
        states=(batch, chunks, count, states, channels) if cut or states > IN_REGISTERS else None,
        chunk_state=scan_launch(chunk_state, form, chunks, chunked=True) if cut else None,
        state_passing=passing_launch(state_passing, form) if cut else None,
        chunk_scan=scan_launch(chunk_scan, form, chunks, chunked=cut),
        chunks=chunks,
        sizes=dict(H=form.grid[0], W=form.grid[1], T=chunk),
    )


def scan(walks: Walks, dtype: torch.dtype) -> torch.Tensor:
    """Scan every walk: `(K, B, L, D)` of `dtype`, one buffer a walk; grouped walks `(B, L, K*D)`."""
    x = walks.x
    plan = _plan(form_of(walks), dtype, machine(x.device))
    y = x.new_empty(plan.y, dtype=dtype)
    if plan.chunk_scan is None:
        return y
    states = None if plan.states is None else x.new_empty(plan.states, dtype=torch.float32)
    inputs = walks.tensors()
    with on_device(x):
        if plan.chunk_state is not None:
            sums = x.new_empty(plan.sums, dtype=torch.float32)
            plan.chunk_state.start(inputs | dict(p_sums=sums, p_states=states) | plan.sizes)
            plan.state_passing.start(dict(p_A=walks.A, p_sums=sums, p_states=states, chunks=plan.chunks))
        others = dict(p_skip=walks.skip, p_states=states, p_y=y, B=x.shape[0])
        plan.chunk_scan.start(inputs | others | plan.sizes)
    return y
