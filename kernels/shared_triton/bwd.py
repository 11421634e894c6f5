"""The scan backward on a GPU: states are recomputed, nothing of the size of all routes is kept but their gradient of x.

`fwd._walk` keeps the state that enters every tile, and of every chunk what `_carry` needs in either direction of
time: sum of the time steps, end state, adjoint. `_walk_back` goes through a chunk's tiles from the last to
the first, replays each from its stored state, and runs the adjoint up the tile. Sums over channels are one partial a
channel block, sums over positions one partial a program; small reductions add them in a fixed order. No atomics.

Registers are what limits `_walk_back`: where a value can be had again for two instructions, it is not kept.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .fwd import (
    IN_REGISTERS,
    Form,
    Walks,
    carry_launch,
    chunking,
    constants,
    enter,
    form_of,
    machine,
    walk_launch,
)
from .launch import Launch, on_device, planned
from .numerics import (
    BT,
    LN2,
    LOG2E,
    from_rows,
    load_tile,
    pair_rows,
    pixels_of,
    rounded,
    row_pointers,
    separate_product,
    step_rows,
    store_tile,
    times_slope,
    turned,
    weight_block,
    weights_of,
)
from .sums import add_up, collecting


def block_of(channels: int, states: int) -> int:
    """Channels of a program, one a lane: two warps share what does not depend on the channel, none is wasted."""
    return 64 if channels % 64 == 0 and states <= IN_REGISTERS.value else 32


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


@triton.jit
def _differentiate_state(
    p_A, p_B, p_dB, p_tile, p_state, passed, offsets, m_d, m_t, u, uxs, gs, adjoint, along_B, along_A,
    N: tl.constexpr, CHUNKED: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, FAST: tl.constexpr, EXACT: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dB and dC of a state; its adjoint before a tile, dA, and what it adds to `along_B` and `along_A`.

    `along_B`: the gradient of time step times x. `along_A`: that of the time step through the decay.
    """
    A = tl.load(p_A, mask=m_d, other=0.0)
    h = tl.load(p_tile, mask=m_d, other=0.0)
    if CHUNKED:
        h += tl.exp2(A * passed) * tl.load(p_state, mask=m_d, other=0.0)
    Bs, Cs = pair_rows(p_B, offsets, N, BT, BD)
    hs = (h * LOG2E,)  # u is the time step over ln 2 and so are the states here
    for i in tl.static_range(BT):
        hs = hs + (tl.exp2(A * u[i]) * hs[i] + uxs[i] * Bs[i],)
    # for want of registers decays are computed again rather than kept; behind the barrier the compiler must obey
    tl.debug_barrier()
    A = tl.load(p_A, mask=m_d, other=0.0)
    A_ln2 = A * LN2
    # the walk goes backwards and rows are collected that way; turned round at the end
    dA = tl.zeros((BD,), tl.float32)
    back_B = ()
    back_A = ()
    back_dB = ()
    back_dC = ()
    for i in tl.static_range(BT - 1, -1, -1):
        dh = adjoint + Cs[i] * gs[i]
        adjoint = tl.exp2(A * u[i]) * dh
        da = adjoint * hs[i]
        dA += da * u[i]
        back_dC = back_dC + (separate_product(gs[i], hs[i + 1], FAST and EXACT),)
        back_dB = back_dB + (separate_product(dh, uxs[i], FAST and EXACT),)
        if N == 1:
            back_B = back_B + (dh * Bs[i],)
            back_A = back_A + (da * A_ln2,)
        else:
            back_B = back_B + (along_B[i] + dh * Bs[i],)
            back_A = back_A + (along_A[i] + da * A_ln2,)
    sums = from_rows(turned(back_dB, BT) + turned(back_dC, BT), 2 * BT, BD)
    if EXACT:
        sums = tl.sum(sums, axis=1) * LN2
    else:  # a product with ones, all columns of which are the same, is cheaper
        ones = rounded(tl.full((BD, 16), 1.0, tl.float32), OPERAND)
        sums = tl.sum(tl.dot(rounded(sums, OPERAND), ones, input_precision=PRECISION), axis=1) * (LN2 / 16)
    p_pairs = (p_dB + tl.arange(0, 2) * N)[None, :] + offsets[:, None]
    tl.store(p_pairs, tl.trans(tl.reshape(sums, (2, BT))), mask=m_t)
    return adjoint, dA * (LN2 * LN2), turned(back_B, BT), turned(back_A, BT)


@triton.jit
def _differentiate_tile(
    i_tile, end, carried, weights, bias, skip, source, m_d, pointers, outputs, route, route_out,
    K: tl.constexpr, D: tl.constexpr, N: tl.constexpr, R: tl.constexpr, RB: tl.constexpr,
    COLUMNS: tl.constexpr, KEEPS: tl.constexpr, GROUPED: tl.constexpr, SOFTPLUS: tl.constexpr, CHUNKED: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr, VECTOR: tl.constexpr, LONG_LINES: tl.constexpr, LARGE: tl.constexpr,
    FAST: tl.constexpr, EXACT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of a walk, up to `end`. Past it `last` is repeated, where g and the adjoint are zero: nothing is added."""
    KC: tl.constexpr = K * (R + 2 * N)
    XC: tl.constexpr = K * D if GROUPED else D
    p_x, p_dy, p_projected, p_ready, p_A, p_tile, p_tile_sum, p_state, p_adjoint = pointers
    p_dx, p_dprojected, p_dready, p_dweight, p_dA = outputs
    adjoints, dAs, dskip, dbias, _ = carried
    t0 = i_tile * BT
    last = end - 1 - t0
    p_tile += i_tile.to(tl.int64) * (K * N * D)
    p_weight, p_bias, p_skip, o_k, i_d = source
    nothing = tl.minimum(t0, 0)  # which the compiler cannot know: it must not keep what depends on it
    if N > IN_REGISTERS:
        o_k += nothing
        p_A += nothing
        p_dA += nothing
        p_adjoint += nothing
        p_x += nothing
        p_dy += nothing
        p_dx += nothing
        p_state += nothing
        p_tile_sum += nothing
        p_projected += nothing
        p_dprojected += nothing
        p_bias += nothing
        p_skip += nothing
        bias = tl.load(p_bias, mask=m_d, other=0.0) * LOG2E
        skip = tl.load(p_skip, mask=m_d, other=0.0)
        weights = weights_of(p_weight, o_k, i_d, D, R, RB, BD, VECTOR, OPERAND)
    u = step_rows(
        t0, last, p_projected, p_ready, weights, bias, m_d, route,
        KC, K * D, R, RB, True, SOFTPLUS, BT, BD, VECTOR, COLUMNS != 0, LONG_LINES, LARGE, FAST,
        EXACT, OPERAND, PRECISION,
    )  # fmt: skip
    o_t = tl.arange(0, BT)
    clamped = tl.minimum(o_t, last)
    pixel = pixels_of(t0, clamped, route, COLUMNS != 0, LONG_LINES, LARGE)
    pixel_out = pixels_of(t0, clamped, route_out, COLUMNS != 0, LONG_LINES, LARGE)
    m_t = (o_t <= last)[:, None]
    mask = m_t & m_d[None, :]
    uxs = ()
    along_B = ()
    along_A = ()
    xs = load_tile(row_pointers(p_x, pixel * XC, VECTOR), m_d[None, :], BT, BD)
    gs = load_tile(row_pointers(p_dy, pixel_out * XC, VECTOR), mask, BT, BD)  # zero past the end: adds nothing
    for i in tl.static_range(BT):
        dskip += gs[i] * xs[i]
        uxs = uxs + (u[i] * xs[i],)
        if N > 1:
            along_B = along_B + (tl.zeros((BD,), tl.float32),)
            along_A = along_A + (tl.zeros((BD,), tl.float32),)
    passed = tl.load(p_tile_sum + i_tile.to(tl.int64) * (K * D), mask=m_d, other=0.0) if CHUNKED else 0.0
    if N <= IN_REGISTERS:
        new_adjoints = ()
        new_dAs = ()
        for n in tl.static_range(N):
            adjoint, dA, along_B, along_A = _differentiate_state(
                p_A + n, p_projected + (R + n), p_dprojected + (R + n), p_tile + n * D, p_state + n * D, passed,
                pixel * KC, m_d, m_t, u, uxs, gs, adjoints[n], along_B, along_A,
                N, CHUNKED, BT, BD, FAST, EXACT, OPERAND, PRECISION,
            )  # fmt: skip
            new_adjoints = new_adjoints + (adjoint,)
            new_dAs = new_dAs + (dAs[n] + dA,)
        adjoints = new_adjoints
        dAs = new_dAs
    else:
        for n in range(N):
            adjoint = tl.load(p_adjoint + n * D, mask=m_d, other=0.0)
            adjoint, dA, along_B, along_A = _differentiate_state(
                p_A + n, p_projected + (R + n), p_dprojected + (R + n), p_tile + n * D, p_state + n * D, passed,
                pixel * KC, m_d, m_t, u, uxs, gs, adjoint, along_B, along_A,
                N, CHUNKED, BT, BD, FAST, EXACT, OPERAND, PRECISION,
            )  # fmt: skip
            tl.store(p_adjoint + n * D, adjoint, mask=m_d)
            tl.store(p_dA + n * D, tl.load(p_dA + n * D, mask=m_d, other=0.0) + dA, mask=m_d)
        tl.debug_barrier()
    if N > IN_REGISTERS:
        clamped = tl.minimum(o_t, last + nothing)
        pixel = pixels_of(t0 + nothing, clamped, route, COLUMNS != 0, LONG_LINES, LARGE)
    xs = load_tile(row_pointers(p_x, pixel * XC, VECTOR), m_d[None, :], BT, BD)
    dzs = ()
    dxs = ()
    for i in tl.static_range(BT):
        dxs = dxs + (skip * gs[i] + along_B[i] * (u[i] * LN2),)
        dz = times_slope(along_B[i] * xs[i] + along_A[i], u[i], SOFTPLUS, EXACT)
        dbias += dz
        dzs = dzs + (dz,)
    store_tile(row_pointers(p_dx, pixel * XC, VECTOR), dxs, mask, BT, BD)
    if R == 0:
        store_tile(row_pointers(p_dready, pixel * (K * D), VECTOR), dzs, mask, BT, BD)

    if R > 0:
        dz = rounded(from_rows(dzs, BT, BD), OPERAND)
        o_r = tl.arange(0, RB)
        p_dts = (p_projected + nothing + o_r)[:, None] + (pixel * KC)[None, :]  # transposed
        p_ddts = (p_dprojected + nothing + o_r)[None, :] + (pixel * KC)[:, None]
        p_dweights = (p_dweight + nothing + o_r * D)[:, None] + tl.arange(0, BD)[None, :]
        for i in tl.static_range((R + RB - 1) // RB):
            m_r = ((o_r < R - i * RB) | (R - i * RB >= RB))[None, :]
            if N > IN_REGISTERS:
                weight = weight_block(i, p_weight, o_k, i_d, D, R, RB, BD, VECTOR, OPERAND)
            else:
                weight = weights[i]
            ddts = tl.dot(dz, rounded(tl.trans(weight), OPERAND), input_precision=PRECISION)
            tl.store(p_ddts + i * RB, ddts, mask=m_t & m_r)
            m_w = tl.trans(m_r) & m_d[None, :]
            dweight = tl.load(p_dweights + i * (RB * D), mask=m_w, other=0.0)
            dts = rounded(tl.load(p_dts + i * RB, mask=tl.trans(m_r), other=0.0), OPERAND)
            dweight = tl.dot(dts, dz, dweight, input_precision=PRECISION)
            tl.store(p_dweights + i * (RB * D), dweight, mask=m_w)
        tl.debug_barrier()
    return adjoints, dAs, dskip, dbias, nothing


@triton.jit(do_not_specialize=['B', 'L', 'H', 'W', 'T', 'chunks'])
def _walk_back(
    p_dy, p_x, p_projected, p_ready, p_weight, p_bias, p_skip, p_A, p_tiles, p_tile_sums, p_states, p_adjoints,
    p_dx, p_dprojected, p_dready, p_dweight, p_sums,
    B, L, H, W, T, chunks,
    K: tl.constexpr, D: tl.constexpr, N: tl.constexpr, R: tl.constexpr, RB: tl.constexpr,
    COLUMNS: tl.constexpr, REVERSES: tl.constexpr, KEEPS: tl.constexpr, GROUPED: tl.constexpr, SOFTPLUS: tl.constexpr,
    CHUNKED: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, VECTOR: tl.constexpr, LONG_LINES: tl.constexpr,
    LARGE: tl.constexpr, FAST: tl.constexpr, EXACT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradients: `dprojected (blocks, B, L, K, R + 2N)` and the parameters' `(B, chunks, ...)` partially.

    `states` and `adjoints (B, chunks, K, N, D)`: what enters each chunk at its start and at its end. Not CHUNKED: both
    are zero and need not be written. `sums (B, chunks, K, N + 2, D)`: dA of every state, dskip, dbias. `dweight (B,
    chunks, K, R, D)` is summed in memory, and so are adjoints and dA of many states; a barrier a tile orders what
    lanes write and read.
    """
    i_d, i_c, i_k, image, o_chunk, o_d, m_d, o_kd, o_x, route, route_out, moved = enter(
        (p_x, p_projected, p_ready, p_tiles, p_tile_sums, p_states, p_adjoints),
        L, H, W, chunks, K, D, N, R, COLUMNS, REVERSES, KEEPS, GROUPED, BT, BD,
    )  # fmt: skip
    p_x, p_projected, p_ready, p_tile, p_tile_sum, p_state, p_adjoint = moved
    p_dy += o_x
    p_dx += o_x if GROUPED else i_k.to(tl.int64) * B * L * D + o_x
    p_dprojected += ((i_d.to(tl.int64) * B * L + image) * K + i_k) * (R + 2 * N)
    p_dready += (image * K + i_k) * D + o_d
    p_dA = p_sums + o_chunk * ((N + 2) * D) + o_d
    bias = tl.load(p_bias + o_kd, mask=m_d, other=0.0) * LOG2E
    skip = tl.load(p_skip + o_kd, mask=m_d, other=0.0)
    source = (p_weight, p_bias + o_kd, p_skip + o_kd, i_k * D, i_d)
    weights = ()
    if N <= IN_REGISTERS:
        weights = weights_of(p_weight, i_k * D, i_d, D, R, RB, BD, VECTOR, OPERAND)
    p_A += o_kd * N
    zero = tl.zeros((BD,), tl.float32)
    adjoints = ()
    dAs = ()
    if N <= IN_REGISTERS:
        for n in tl.static_range(N):
            adjoints = adjoints + (tl.load(p_adjoint + n * D, mask=m_d, other=0.0) if CHUNKED else zero,)
            dAs = dAs + (zero,)
    else:
        for n in range(N):
            tl.store(p_dA + n * D, zero, mask=m_d)
            if not CHUNKED:
                tl.store(p_adjoint + n * D, zero, mask=m_d)
        tl.debug_barrier()
    o_r = tl.arange(0, RB)
    p_dweight += o_chunk * (R * D) + i_d * BD
    p_dweights = (p_dweight + o_r * D)[:, None] + tl.arange(0, BD)[None, :]
    for i in tl.static_range((R + RB - 1) // RB):
        m_w = (o_r < R - i * RB)[:, None] & m_d[None, :]
        tl.store(p_dweights + i * (RB * D), tl.zeros((RB, BD), tl.float32), mask=m_w)
    tl.debug_barrier()

    carried = (adjoints, dAs, zero, zero, 0)
    pointers = (p_x, p_dy, p_projected, p_ready, p_A, p_tile, p_tile_sum, p_state, p_adjoint)
    outputs = (p_dx, p_dprojected, p_dready, p_dweight, p_dA)
    begin = i_c * T
    end = tl.minimum(L, begin + T)
    after = tl.cdiv(end, BT)
    for i in range(tl.cdiv(end - begin, BT)):
        carried = _differentiate_tile(
            after - 1 - i, end, carried, weights, bias, skip, source, m_d, pointers, outputs, route, route_out,
            K, D, N, R, RB, COLUMNS, KEEPS, GROUPED, SOFTPLUS, CHUNKED, BT, BD, VECTOR, LONG_LINES, LARGE,
            FAST, EXACT, OPERAND, PRECISION,
        )  # fmt: skip

    adjoints, dAs, dskip, dbias, nothing = carried
    o_chunk = ((tl.program_id(0) + nothing) // tl.cdiv(D, BD)).to(tl.int64)  # the same: programs count channels first
    p_sums += o_chunk * ((N + 2) * D) + o_d
    tl.store(p_sums + N * D, dskip, mask=m_d)
    tl.store(p_sums + (N + 1) * D, dbias, mask=m_d)
    if N <= IN_REGISTERS:
        for n in tl.static_range(N):
            tl.store(p_sums + n * D, dAs[n], mask=m_d)


class _Plan(NamedTuple):
    """A backward pass as its form fixes it: shapes of its buffers (None: not needed), launches and their numbers."""

    dx: tuple[int, ...]
    dprojected: tuple[int, ...]
    dready: tuple[int, ...] | None
    dweight: tuple[int, ...]
    sums: tuple[int, ...]
    tile_states: tuple[int, ...]
    tile_sums: tuple[int, ...] | None
    chunk_sums: tuple[int, ...] | None
    chunk_states: tuple[int, ...] | None
    walk: Launch
    carry: Launch | None
    carry_back: Launch | None
    walk_back: Launch
    collect: Launch
    numbers: tuple[int, ...]


@planned
def _plan(form: Form, dtypes: tuple[torch.dtype, torch.dtype], machine: tuple[int, int]) -> _Plan:
    batch, length, count, channels = form.batch, form.length, form.count, form.channels
    states, rank = form.states, form.rank
    shared = constants(form)
    block = block_of(channels, states)
    blocks = triton.cdiv(channels, block)
    programs = batch * count * blocks
    chunks, chunk = chunking(max(1, programs), length, form.device)
    tiles = triton.cdiv(length, BT)
    cut = chunks > 1
    return _Plan(
        dx=(batch, length, count * channels) if form.grouped else (count, batch, length, channels),
        dprojected=(blocks, batch, length, count, rank + 2 * states),
        dready=(batch, length, count * channels) if form.ready else None,
        dweight=(batch, chunks, count, rank, channels),
        sums=(batch, chunks, count, states + 2, channels),
        tile_states=(batch, tiles, count, states, channels),
        tile_sums=(batch, tiles, count, channels) if cut else None,
        chunk_sums=(batch, chunks, count, channels) if cut else None,
        chunk_states=(batch, chunks, count, states, channels) if cut or states > IN_REGISTERS.value else None,
        walk=walk_launch(form, chunks, SUMMARY=cut, TILES=True),
        carry=carry_launch(form, back=False) if cut else None,
        carry_back=carry_launch(form, back=True) if cut else None,
        walk_back=Launch(
            _walk_back,
            programs * chunks,
            **dict(CHUNKED=cut, BD=block, VECTOR=1, num_warps=block // 32, num_stages=1, **shared),
        ),
        collect=collecting(count, channels, states, 2, rank),
        numbers=(batch, length, *form.grid, chunk, chunks),
    )


def scan_backward(walks: Walks, dy: torch.Tensor, dtype: torch.dtype, projected_dtype=torch.float32) -> Gradients:
    """Gradients of `scan`.

    Args:
        walks: what was scanned.
        dy: shaped as x, `dense`: `(B, L, D)`, which all walks share, or `(B, L, K*D)`.
        dtype: of x's gradients.
        projected_dtype: of the projections' gradients.
    """
    x = walks.x
    form = form_of(walks)
    plan = _plan(form, (dy.dtype, dtype), machine(x.device))

    def empty(shape):
        return tile_states if shape is None else x.new_empty(shape, dtype=torch.float32)  # the former is not touched

    tile_states = x.new_empty(plan.tile_states, dtype=torch.float32)
    dx = x.new_empty(plan.dx, dtype=dtype)
    dprojected, dready, dweight, sums = map(empty, (plan.dprojected, plan.dready, plan.dweight, plan.sums))
    parameters = tuple(empty(shape) for shape in (walks.A.shape, (2, *walks.skip.shape), walks.weight.shape))
    if form.batch:
        tile_sums, chunk_sums, entering, adjoints = map(
            empty, (plan.tile_sums, plan.chunk_sums, plan.chunk_states, plan.chunk_states)
        )
        tensors = walks.tensors()
        with on_device(x):
            plan.walk((*tensors, dy, tile_states, tile_sums, chunk_sums, entering, adjoints), *plan.numbers)
            if plan.carry is not None:
                plan.carry((walks.A, chunk_sums, entering), plan.numbers[-1])
                plan.carry_back((walks.A, chunk_sums, adjoints), plan.numbers[-1])
            plan.walk_back(
                (dy, *tensors, tile_states, tile_sums, entering, adjoints, dx, dprojected, dready, dweight, sums),
                *plan.numbers,
            )
            plan.collect((sums, dweight, *parameters), form.batch * plan.numbers[-1])
    else:
        for t in parameters:
            t.zero_()
    if plan.dprojected[0] > 1 or projected_dtype != torch.float32:
        dprojected = add_up(dprojected, projected_dtype)
    else:
        dprojected = dprojected[0]
    dA, (dskip, dbias), dweights = parameters
    return Gradients(dx, dprojected, dready if form.ready else None, dweights, dbias, dskip, dA)
