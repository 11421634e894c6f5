"""The scan forward on a GPU, for every operator: one kernel for summary, replay and the one-pass walk, one for carries.

A walk over few images and channels has too few programs for the machine. It is then cut into chunks: `_walk` summarises
every chunk (sum of the time steps, end state from a zero start), `_carry` hands states from chunk to chunk, `_walk`
replays every chunk from its true start. Nothing waits for another program, so results never depend on timing.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .launch import Launch, on_device, planned
from .numerics import (
    BT,
    LN2,
    LOG2E,
    is_large,
    launch_options,
    load_tile,
    multiprocessors,
    numerics,
    pair_rows,
    pixels_of,
    program,
    route_of,
    row_pointers,
    step_rows,
    store_tile,
    weights_of,
)

PROGRAMS_PER_MULTIPROCESSOR = 8
"""Below half of this many programs (each one warp) a walk is cut: two warps to hide each other on every scheduler."""

SHORTEST_CHUNK = 64
"""Positions; shorter chunks would spend more on carries than they win."""

IN_REGISTERS = tl.constexpr(2)
"""States per channel that a walk keeps in registers."""

KEPT_RANKS, KEPT_RANKS_OF_MANY = tl.constexpr(16), tl.constexpr(32)
"""Ranks whose float32 weights a walk of few states, or of many, keeps in registers. More are read again: of few states
for the last, ragged tile, of many states for every tile if inputs are float32."""


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

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What every kernel that walks is given first."""
        x, ready = self.x, self.ready
        return x, self.projected, x if ready is None else ready, self.weight, self.bias, self.skip, self.A


class Form(NamedTuple):
    """All that decides which kernels walk, over how many programs: what plans are kept by."""

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


def machine(device: torch.device) -> tuple[int, int]:
    """What `chunking` goes by, for keeping plans."""
    return PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device), SHORTEST_CHUNK


def chunking(programs: int, length: int, device: torch.device) -> tuple[int, int]:
    """Number of chunks and their length, a whole number of tiles: 1 chunk if `programs` walks fill the machine."""
    wanted = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device)
    if 2 * programs >= wanted:
        return 1, BT * math.ceil(length / BT)
    chunk = max(SHORTEST_CHUNK, math.ceil(length * programs / wanted))
    chunk = BT * math.ceil(chunk / BT)
    return math.ceil(length / chunk), chunk


@triton.jit
def enter(
    pointers, L, H, W, chunks, K: tl.constexpr, D: tl.constexpr, N: tl.constexpr, R: tl.constexpr,
    COLUMNS: tl.constexpr, REVERSES: tl.constexpr, KEEPS: tl.constexpr, GROUPED: tl.constexpr, BT: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """Where a program of a walk is, in either direction, with its pointers moved there.

    Channel block, chunk, walk, first position of the image, number of the chunk; channels, their mask, their place
    among parameters, offset into x and what is laid out like it; routes of input and output; the pointers: x, projected
    and ready at the image, tiles and their sums at the image's first, states and adjoints at the chunk.
    """
    p_x, p_projected, p_ready, p_tiles, p_tile_sums, p_states, p_adjoints = pointers
    i_d, i_c, i_k, i_b = program(chunks, K, tl.cdiv(D, BD))
    o_d = i_d * BD + tl.arange(0, BD)
    m_d = (o_d < D) | (D % BD == 0)
    route = route_of(i_k, L, H, W, COLUMNS, REVERSES)
    route_out = route_of(i_k, L, H, W, COLUMNS, REVERSES & ~KEEPS)
    image = i_b.to(tl.int64) * L
    o_chunk = (i_b.to(tl.int64) * chunks + i_c) * K + i_k
    first_tile = i_b.to(tl.int64) * tl.cdiv(L, BT) * K + i_k
    o_x = image * (K * D) + i_k * D + o_d if GROUPED else image * D + o_d
    moved = (
        p_x + o_x,
        p_projected + (image * K + i_k) * (R + 2 * N),
        p_ready + (image * K + i_k) * D + o_d,
        p_tiles + first_tile * (N * D) + o_d,  # one state after another, D apart
        p_tile_sums + first_tile * D + o_d,
        p_states + o_chunk * (N * D) + o_d,
        p_adjoints + o_chunk * (N * D) + o_d,
    )
    return i_d, i_c, i_k, image, o_chunk, o_d, m_d, i_k * D + o_d, o_x, route, route_out, moved


@triton.jit
def _scan_tile(
    t0, begin, end, carried, weights, source, A, bias, skip, m_d, pointers, route, route_out,
    K: tl.constexpr, D: tl.constexpr, N: tl.constexpr, R: tl.constexpr, RB: tl.constexpr,
    COLUMNS: tl.constexpr, KEEPS: tl.constexpr, GROUPED: tl.constexpr, SOFTPLUS: tl.constexpr,
    SUMMARY: tl.constexpr, TILES: tl.constexpr, STARTS: tl.constexpr, RAGGED: tl.constexpr, BT: tl.constexpr,
    BD: tl.constexpr, VECTOR: tl.constexpr, LONG_LINES: tl.constexpr, LARGE: tl.constexpr, FAST: tl.constexpr,
    EXACT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Positions `t0` to `t0 + BT` of a walk from `begin` to `end`; RAGGED: the last ones, fewer than BT."""
    KC: tl.constexpr = K * (R + 2 * N)
    XC: tl.constexpr = K * D if GROUPED else D
    OUTPUT: tl.constexpr = not (SUMMARY or TILES)
    ADJOINTS: tl.constexpr = SUMMARY and TILES
    p_x, p_projected, p_ready, p_y, p_A, p_tile, p_tile_sum, p_state, p_adjoint = pointers
    h, decays, shares, total = carried
    last = end - 1 - t0
    i_tile = t0 // BT + tl.zeros((), tl.int64)
    p_tile += i_tile * (K * N * D)
    if ADJOINTS:
        tl.store(p_tile_sum + i_tile * (K * D), total, mask=m_d)
    if tl.float32 == OPERAND and (EXACT and R > KEPT_RANKS_OF_MANY if N > IN_REGISTERS else RAGGED and R > KEPT_RANKS):
        p_weight, o_k, i_d = source
        o_k += tl.minimum(t0, 0)  # zero, which the compiler cannot know: it would keep all again
        weights = weights_of(p_weight, o_k, i_d, D, R, RB, BD, VECTOR, OPERAND)
    u = step_rows(
        t0, last, p_projected, p_ready, weights, bias, m_d, route,
        KC, K * D, R, RB, RAGGED, SOFTPLUS, BT, BD, VECTOR, COLUMNS != 0, LONG_LINES, LARGE, FAST,
        EXACT, OPERAND, PRECISION,
    )  # fmt: skip
    before = total
    o_t = tl.arange(0, BT)
    pixel = pixels_of(t0, tl.minimum(o_t, last) if RAGGED else o_t, route, COLUMNS != 0, LONG_LINES, LARGE)
    o_x = pixel * XC
    o_y = pixels_of(t0, tl.minimum(o_t, last) if RAGGED else o_t, route_out, COLUMNS != 0, LONG_LINES, LARGE) * XC
    mask = m_d[None, :]
    if RAGGED:
        mask = mask & (o_t <= last)[:, None]
    xs = load_tile(row_pointers(p_x, o_x, VECTOR), m_d[None, :], BT, BD)
    if ADJOINTS:
        gs = load_tile(
            row_pointers(p_y, o_y, VECTOR), mask, BT, BD
        )  # zero past the end, so that nothing is added there
    if SUMMARY:
        for i in tl.static_range(BT):
            total += u[i]
    if N <= IN_REGISTERS:
        new_h = ()
        new_decays = ()
        new_shares = ()
        for n in tl.static_range(N):
            if TILES:
                tl.store(p_tile + n * D, h[n], mask=m_d)
        ys = ()
        for i in tl.static_range(BT):
            ys = ys + (skip * xs[i],)
        for n in tl.static_range(N):
            Bs, Cs = pair_rows(p_projected + (R + n), pixel * KC, N, BT, BD)
            state = h[n]
            if ADJOINTS:
                decay = decays[n]
                share = shares[n]
            sums = ()
            for i in tl.static_range(BT):
                a = tl.exp2(A[n] * u[i])
                state = a * state + u[i] * xs[i] * (Bs[i] * LN2)
                if OUTPUT:
                    sums = sums + (ys[i] + Cs[i] * state,)
                if ADJOINTS:
                    decay *= a
                    share += decay * (Cs[i] * gs[i])
            ys = sums
            new_h = new_h + (state,)
            if ADJOINTS:
                new_decays = new_decays + (decay,)
                new_shares = new_shares + (share,)
        h = new_h
        decays = new_decays
        shares = new_shares
        if OUTPUT:
            store_tile(row_pointers(p_y, o_y, VECTOR), ys, mask, BT, BD)
    else:
        ys = ()
        uxs = ()
        for i in tl.static_range(BT):
            ys = ys + (skip * xs[i],)
            uxs = uxs + (u[i] * xs[i] * LN2,)
        m_later = (m_d & (t0 > begin)) != 0
        m_enters = m_d if STARTS else m_later
        m_leaves = m_d if SUMMARY else (m_d & (t0 + BT < end)) != 0
        for n in range(N):
            A_n = tl.load(p_A + n, mask=m_d, other=0.0)
            state = tl.load(p_state + n * D, mask=m_enters, other=0.0)
            if TILES:
                tl.store(p_tile + n * D, state, mask=m_d)
            if ADJOINTS:
                share = tl.load(p_adjoint + n * D, mask=m_later, other=0.0)
                decay = tl.exp2(A_n * before)
            sums = ()
            Bs, Cs = pair_rows(p_projected + (R + n), pixel * KC, N, BT, BD)
            for i in tl.static_range(BT):
                a = tl.exp2(A_n * u[i])
                state = a * state + uxs[i] * Bs[i]
                if OUTPUT:
                    sums = sums + (ys[i] + Cs[i] * state,)
                if ADJOINTS:
                    decay *= a
                    share += decay * (Cs[i] * gs[i])
            if OUTPUT:
                ys = sums
            if ADJOINTS:
                tl.store(p_adjoint + n * D, share, mask=m_d)
            tl.store(p_state + n * D, state, mask=m_leaves)
        tl.debug_barrier()
        if OUTPUT:
            store_tile(row_pointers(p_y, o_y, VECTOR), ys, mask, BT, BD)
    return h, decays, shares, total


@triton.jit(do_not_specialize=['B', 'L', 'H', 'W', 'T', 'chunks'])
def _walk(
    p_x, p_projected, p_ready, p_weight, p_bias, p_skip, p_A, p_y, p_tiles, p_tile_sums, p_sums, p_states, p_adjoints,
    B, L, H, W, T, chunks,
    K: tl.constexpr, D: tl.constexpr, N: tl.constexpr, R: tl.constexpr, RB: tl.constexpr,
    COLUMNS: tl.constexpr, REVERSES: tl.constexpr, KEEPS: tl.constexpr, GROUPED: tl.constexpr, SOFTPLUS: tl.constexpr,
    SUMMARY: tl.constexpr, TILES: tl.constexpr, STARTS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
    VECTOR: tl.constexpr, LONG_LINES: tl.constexpr, LARGE: tl.constexpr, FAST: tl.constexpr, EXACT: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walk forward for one of several purposes.

    SUMMARY: write `sums (B, chunks, K, D)` of the time steps and `states (B, chunks, K, N, D)` at the ends of chunks.
    TILES: write `tiles (B, tiles, K, N, D)`, the states that enter tiles. Neither: write y.
    Both: `y` is the gradient of y; also write `tile_sums (B, tiles, K, D)`, the time steps of a chunk before each tile,
    and `adjoints (B, chunks, K, N, D)`, each chunk's own share of the adjoint at its start.
    STARTS: start from `states` instead of zero. Many states do not fit into registers: they live in `states` and
    `adjoints`, with a barrier (of one warp) a tile.
    """
    i_d, i_c, i_k, _image, o_chunk, o_d, m_d, o_kd, o_x, route, route_out, moved = enter(
        (p_x, p_projected, p_ready, p_tiles, p_tile_sums, p_states, p_adjoints),
        L, H, W, chunks, K, D, N, R, COLUMNS, REVERSES, KEEPS, GROUPED, BT, BD,
    )  # fmt: skip
    p_x, p_projected, p_ready, p_tile, p_tile_sum, p_state, p_adjoint = moved
    if GROUPED or SUMMARY or TILES:
        p_y += o_x
    else:
        p_y += i_k.to(tl.int64) * B * L * D + o_x
    bias = tl.load(p_bias + o_kd, mask=m_d, other=0.0) * LOG2E
    skip = tl.load(p_skip + o_kd, mask=m_d, other=0.0)
    source = (p_weight, i_k * D, i_d)
    weights = ()
    if not (EXACT and N > IN_REGISTERS and R > KEPT_RANKS_OF_MANY):
        weights = weights_of(p_weight, i_k * D, i_d, D, R, RB, BD, VECTOR, OPERAND)
    p_A += o_kd * N
    zero = tl.zeros((BD,), tl.float32)
    A = ()
    h = ()
    decays = ()
    shares = ()
    if N <= IN_REGISTERS:
        for n in tl.static_range(N):
            A = A + (tl.load(p_A + n, mask=m_d, other=0.0),)
            h = h + (tl.load(p_state + n * D, mask=m_d, other=0.0) if STARTS else zero,)
            if SUMMARY and TILES:
                decays = decays + (zero + 1.0,)
                shares = shares + (zero,)

    carried = (h, decays, shares, zero)
    pointers = (p_x, p_projected, p_ready, p_y, p_A, p_tile, p_tile_sum, p_state, p_adjoint)
    begin = i_c * T
    end = tl.minimum(L, begin + T)
    full = end - (end - begin) % BT
    for t0 in range(begin, full, BT):
        carried = _scan_tile(
            t0, begin, end, carried, weights, source, A, bias, skip, m_d, pointers, route, route_out,
            K, D, N, R, RB, COLUMNS, KEEPS, GROUPED, SOFTPLUS, SUMMARY, TILES, STARTS, False, BT, BD, VECTOR,
            LONG_LINES, LARGE, FAST, EXACT, OPERAND, PRECISION,
        )  # fmt: skip
    if full < end:
        carried = _scan_tile(
            full, begin, end, carried, weights, source, A, bias, skip, m_d, pointers, route, route_out,
            K, D, N, R, RB, COLUMNS, KEEPS, GROUPED, SOFTPLUS, SUMMARY, TILES, STARTS, True, BT, BD, VECTOR,
            LONG_LINES, LARGE, FAST, EXACT, OPERAND, PRECISION,
        )  # fmt: skip

    if SUMMARY:
        h, decays, shares, total = carried
        tl.store(p_sums + o_chunk * D + o_d, total, mask=m_d)
        if N <= IN_REGISTERS:
            for n in tl.static_range(N):
                tl.store(p_state + n * D, h[n], mask=m_d)
                if TILES:
                    tl.store(p_adjoint + n * D, shares[n], mask=m_d)


@triton.jit(do_not_specialize=['chunks'])
def _carry(
    p_A, p_sums, p_states, chunks, K: tl.constexpr, D: tl.constexpr, N: tl.constexpr, BACK: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """Turn `states (B, chunks, K, N, D)` from each chunk's own share into what enters it, in place.

    BACK: shares are of adjoints, which enter a chunk at its end and leave it at its start.
    """
    i_d, i_n, i_k, i_b = program(N, K, tl.cdiv(D, BD))
    o_d = i_d * BD + tl.arange(0, BD)
    m_d = o_d < D
    A = tl.load(p_A + (i_k * D + o_d) * N + i_n, mask=m_d, other=0.0)
    h = tl.zeros((BD,), tl.float32)
    for i in range(chunks):
        i_c = chunks - 1 - i if BACK else i
        o_chunk = (i_b.to(tl.int64) * chunks + i_c) * K + i_k
        p_state = p_states + (o_chunk * N + i_n) * D + o_d
        share = tl.load(p_state, mask=m_d, other=0.0)
        total = tl.load(p_sums + o_chunk * D + o_d, mask=m_d, other=0.0)
        tl.store(p_state, h, mask=m_d)
        h = tl.exp2(A * total) * h + share


def carry_launch(form: Form, back: bool) -> Launch:
    """`_carry`, called with A, `sums (B, chunks, K, D)`, `states (B, chunks, K, N, D)`, float32, and the chunks."""
    block = 32
    grid = form.batch * form.count * form.states * triton.cdiv(form.channels, block)
    return Launch(_carry, grid, K=form.count, D=form.channels, N=form.states, BACK=back, BD=block, num_warps=1)


def constants(walks: Walks | Form) -> dict:
    """Compile-time arguments that the walking kernels share."""
    form = form_of(walks) if isinstance(walks, Walks) else walks
    # ready time steps cost no product: nothing is won by less than full precision
    choices = numerics(form.device, torch.float32 if form.ready else form.dtype)
    return dict(
        K=form.count,
        D=form.channels,
        N=form.states,
        R=form.rank,
        RB=rank_block(form.rank, form.states, choices['OPERAND']),
        COLUMNS=form.columns,
        REVERSES=form.reverses,
        KEEPS=form.keeps,
        GROUPED=form.grouped,
        SOFTPLUS=form.softplus,
        BT=BT,
        LONG_LINES=form.grid[0] >= BT,
        LARGE=is_large(form.length, form.grid[0]),
        **choices,
    )


def rank_block(rank: int, states: int, operand) -> int:
    """Ranks of one matrix product: as many as cause no padding beyond the tensor cores' 16 and no spilling."""
    two = -(-rank // 16) % 2 == 0 and rank > 0
    return 32 if two and operand == tl.bfloat16 and states <= IN_REGISTERS.value else 16


def block_of(channels: int, states: int, rank: int, exact: bool) -> int:
    """Channels of a program, which is one warp: as many as the registers hold rows of, none of them wasted."""
    return 64 if channels % 64 == 0 and states <= IN_REGISTERS.value and not (exact and rank > 32) else 32


def walk_options(states: int, exact: bool, cuda: bool) -> dict:
    """How `_walk` is compiled."""
    return launch_options(1, all_registers=cuda and (exact or states > IN_REGISTERS.value))


def walk_launch(form: Form, chunks: int, SUMMARY=False, TILES=False, STARTS=False) -> Launch:
    """`_walk`, called with `Walks.tensors`, its buffers from y on, and its numbers."""
    shared = constants(form)
    block = block_of(form.channels, form.states, form.rank, shared['EXACT'])
    return Launch(
        _walk,
        form.batch * form.count * triton.cdiv(form.channels, block) * chunks,
        **dict(SUMMARY=SUMMARY, TILES=TILES, STARTS=STARTS, BD=block, VECTOR=block // 32),
        **walk_options(form.states, shared['EXACT'], shared['FAST']),
        **shared,
    )


def walk(walks: Walks, buffers, chunks: int, chunk: int, SUMMARY=False, TILES=False, STARTS=False, **_shared) -> None:
    """Run `_walk` by itself; `buffers` from its argument `y` on."""
    form = form_of(walks)
    launch = walk_launch(form, chunks, SUMMARY, TILES, STARTS)
    launch((*walks.tensors(), *buffers), form.batch, form.length, *form.grid, chunk, chunks)


class _Plan(NamedTuple):
    """A scan as its form fixes it: the shapes of its buffers (None: not needed), its launches and their numbers."""

    y: tuple[int, ...]
    sums: tuple[int, ...] | None
    starts: tuple[int, ...] | None
    summary: Launch | None
    carry: Launch | None
    walk: Launch | None
    numbers: tuple[int, ...]


@planned
def _plan(form: Form, dtype: torch.dtype, machine: tuple[int, int]) -> _Plan:
    batch, length, count, channels, states = form.batch, form.length, form.count, form.channels, form.states
    y = (batch, length, count * channels) if form.grouped else (count, batch, length, channels)
    if batch == 0:
        return _Plan(y, None, None, None, None, None, ())
    block = block_of(channels, states, form.rank, constants(form)['EXACT'])
    chunks, chunk = chunking(batch * count * triton.cdiv(channels, block), length, form.device)
    cut = chunks > 1
    return _Plan(
        y,
        sums=(batch, chunks, count, channels) if cut else None,
        starts=(batch, chunks, count, states, channels) if cut or states > IN_REGISTERS.value else None,
        summary=walk_launch(form, chunks, SUMMARY=True) if cut else None,
        carry=carry_launch(form, back=False) if cut else None,
        walk=walk_launch(form, chunks, STARTS=cut),
        numbers=(batch, length, *form.grid, chunk, chunks),
    )


def scan(walks: Walks, dtype: torch.dtype) -> torch.Tensor:
    """Scan every walk: `(K, B, L, D)` of `dtype`, one buffer a walk; grouped walks `(B, L, K*D)`."""
    x = walks.x
    plan = _plan(form_of(walks), dtype, machine(x.device))
    y = x.new_empty(plan.y, dtype=dtype)
    if plan.walk is None:
        return y
    # where there is no buffer it is not touched
    sums = y if plan.sums is None else x.new_empty(plan.sums, dtype=torch.float32)
    starts = y if plan.starts is None else x.new_empty(plan.starts, dtype=torch.float32)
    tensors = (*walks.tensors(), y, y, y, sums, starts, y)
    with on_device(x):
        if plan.summary is not None:
            plan.summary(tensors, *plan.numbers)
            plan.carry((walks.A, sums, starts), plan.numbers[-1])
        plan.walk(tensors, *plan.numbers)
    return y
