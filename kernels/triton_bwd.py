"""The scan backward on a GPU: states are recomputed, nothing of the size of all routes is kept but their gradient of x.

`_prepare` walks forward and keeps the state that enters every tile, and of every chunk what `_carry` needs in either
direction of time: sum of the time steps, end state, adjoint. `_walk_back` goes through a chunk's tiles from the last to
the first, replays each from its stored state, and runs the adjoint up the tile. Sums over channels are one partial a
channel block, sums over positions one partial a program; small reductions add them in a fixed order. No atomics.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .triton_fwd import Walks, carry, chunking, constants
from .triton_math import (
    BT,
    LN2,
    LOG2E,
    padded,
    pixels_of,
    program,
    recur,
    recur_back,
    time_step,
    time_step_slope,
)

RANK_BLOCK = 16
"""Ranks that are multiplied at a time: the weights of more would not fit beside the tiles."""


def block_of(states: int, rank: int, exact: bool) -> int:
    """Channels of a program, which is one warp: as many as the registers hold tiles of."""
    return 32 if states == 1 and not (exact and rank > RANK_BLOCK) else 16


class Gradients(NamedTuple):
    """What `scan_backward` returns, float32 but for x.

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


@triton.jit(do_not_specialize=['B', 'L', 'H', 'W', 'T', 'chunks'])
def _prepare(
    p_x, p_projected, p_ready, p_weight, p_bias, p_A, p_dy, p_tiles, p_tile_sums, p_sums, p_states, p_adjoints,
    B, L, H, W, T, chunks,
    K: tl.constexpr, D: tl.constexpr, N: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    COLUMNS: tl.constexpr, REVERSES: tl.constexpr, KEEPS: tl.constexpr, GROUPED: tl.constexpr, SOFTPLUS: tl.constexpr,
    CHUNKED: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, LONG_LINES: tl.constexpr, LARGE: tl.constexpr,
    FAST: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write `tiles (B, tiles, K, N, D)`, the states that enter the tiles from a zero start of the chunk.

    CHUNKED: also `tile_sums (B, tiles, K, D)`, the time steps of the chunk before each tile, `sums (B, chunks, K, D)`,
    and `states`, `adjoints (B, chunks, K, N, D)`: the state at the end and the adjoint at the start of every chunk.
    """
    C: tl.constexpr = R + 2 * N
    XC: tl.constexpr = K * D if GROUPED else D
    i_d, i_c, i_k, i_b = program(chunks, K, tl.cdiv(D, BD))
    o_d = i_d * BD + tl.arange(0, BD)
    m_d = (o_d < D) | (D % BD == 0)
    o_t = tl.arange(0, BT)
    o_r = tl.arange(0, RP)
    by_column = ((COLUMNS >> i_k) & 1) != 0
    reverse = ((REVERSES >> i_k) & 1) != 0
    reverse_out = (((REVERSES & ~KEEPS) >> i_k) & 1) != 0

    image = i_b.to(tl.int64) * L
    p_x += image * XC
    p_dy += image * XC
    p_projected += (image * K + i_k) * C
    if GROUPED:
        p_x += i_k * D
        p_dy += i_k * D
    if R == 0:
        p_ready += image * K * D + i_k * D
    o_chunk = (i_b.to(tl.int64) * chunks + i_c) * K + i_k
    tiles = tl.cdiv(L, BT)

    o_kd = i_k * D + o_d
    bias = tl.load(p_bias + o_kd, mask=m_d, other=0.0) * LOG2E
    if R > 0:
        m_w = m_d[None, :] & (o_r < R)[:, None]
        weight = tl.load(p_weight + o_kd[None, :] * R + o_r[:, None], mask=m_w, other=0.0) * LOG2E
    zero = tl.zeros((BD,), tl.float32)
    total = zero
    end = tl.minimum(L, (i_c + 1) * T)
    first_tile = (i_b.to(tl.int64) * tiles + i_c * (T // BT)) * K + i_k
    for n in range(N):
        tl.store(p_tiles + (first_tile * N + n) * D + o_d, zero, mask=m_d)
        if CHUNKED:
            tl.store(p_adjoints + (o_chunk * N + n) * D + o_d, zero, mask=m_d)
    tl.debug_barrier()

    for t0 in range(i_c * T, end, BT):
        t = t0 + o_t
        m_t = t < end
        m = m_t[:, None] & m_d[None, :]
        pixel = pixels_of(t0, o_t, L, H, W, by_column, reverse, COLUMNS != 0, LONG_LINES, LARGE)
        x = tl.load(p_x + pixel[:, None] * XC + o_d[None, :], mask=m, other=0.0).to(tl.float32)
        if R > 0:
            m_r = m_t[:, None] & (o_r < R)[None, :]
            dts = tl.load(p_projected + pixel[:, None] * (K * C) + o_r[None, :], mask=m_r, other=0.0).to(tl.float32)
            z = tl.dot(dts, weight, input_precision=PRECISION) + bias[None, :]
        else:
            z = tl.load(p_ready + pixel[:, None] * (K * D) + o_d[None, :], mask=m, other=0.0).to(tl.float32)
            z = z * LOG2E + bias[None, :]
        u = time_step(z, SOFTPLUS, FAST, EXACT)
        ux = u * x
        p_BC = p_projected + pixel * (K * C) + R
        o_tile = (i_b.to(tl.int64) * tiles + t0 // BT) * K + i_k
        if CHUNKED:
            tl.store(p_tile_sums + o_tile * D + o_d, total, mask=m_d)
            if KEEPS != 0:
                pixel = pixels_of(t0, o_t, L, H, W, by_column, reverse_out, COLUMNS != 0, LONG_LINES, LARGE)
            g = tl.load(p_dy + pixel[:, None] * XC + o_d[None, :], mask=m, other=0.0).to(tl.float32)
        p_next = p_tiles + (o_tile + K) * N * D
        if t0 + BT >= end:
            p_next = p_states + o_chunk * N * D
        for n in range(N):
            A = tl.load(p_A + o_kd * N + n, mask=m_d, other=0.0)
            Bs = tl.load(p_BC + n, mask=m_t, other=0.0).to(tl.float32) * LN2
            a = tl.exp2(A[None, :] * u)
            start = tl.load(p_tiles + (o_tile * N + n) * D + o_d, mask=m_d, other=0.0)
            _, last = recur(a, ux * Bs[:, None], start, BT, BD, False)
            tl.store(p_next + n * D + o_d, last, mask=m_d)
            if CHUNKED:
                Cs = tl.load(p_BC + (N + n), mask=m_t, other=0.0).to(tl.float32)
                _, share = recur_back(a, Cs[:, None] * g, zero, BT, BD)
                p_adjoint = p_adjoints + (o_chunk * N + n) * D + o_d
                share = tl.load(p_adjoint, mask=m_d, other=0.0) + tl.exp2(A * total) * share
                tl.store(p_adjoint, share, mask=m_d)
        tl.debug_barrier()
        if CHUNKED:
            total += tl.sum(u, axis=0)
    if CHUNKED:
        tl.store(p_sums + o_chunk * D + o_d, total, mask=m_d)


@triton.jit(do_not_specialize=['B', 'L', 'H', 'W', 'T', 'chunks'])
def _walk_back(
    p_dy, p_x, p_projected, p_ready, p_weight, p_bias, p_skip, p_A, p_tiles, p_tile_sums, p_states, p_adjoints,
    p_dx, p_dprojected, p_dready, p_dweight, p_dbias, p_dskip, p_dA,
    B, L, H, W, T, chunks,
    K: tl.constexpr, D: tl.constexpr, N: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, RB: tl.constexpr,
    CP: tl.constexpr,
    COLUMNS: tl.constexpr, REVERSES: tl.constexpr, KEEPS: tl.constexpr, GROUPED: tl.constexpr, SOFTPLUS: tl.constexpr,
    CHUNKED: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, LONG_LINES: tl.constexpr, LARGE: tl.constexpr,
    FAST: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradients: `dprojected (blocks, B, L, K, R + 2N)` and the parameters' `(B, chunks, ...)` partially.

    `states` and `adjoints (B, chunks, K, N, D)`: what enters each chunk at its start and at its end; `adjoints` is then
    used for the adjoint that goes from tile to tile. Not CHUNKED: both are zero and need not be written.

    Sums over positions stay in memory: in registers they would be spilled, at the same price and out of sight. A
    barrier (of one warp) a tile orders what lanes write and read.
    """
    C: tl.constexpr = R + 2 * N
    XC: tl.constexpr = K * D if GROUPED else D
    KEEP_WEIGHT: tl.constexpr = (R > 0) and (R <= RB) and (N == 1)
    i_d, i_c, i_k, i_b = program(chunks, K, tl.cdiv(D, BD))
    o_d = i_d * BD + tl.arange(0, BD)
    m_d = (o_d < D) | (D % BD == 0)
    o_t = tl.arange(0, BT)
    o_r = tl.arange(0, RB)
    o_c = tl.arange(0, CP)
    by_column = ((COLUMNS >> i_k) & 1) != 0
    reverse = ((REVERSES >> i_k) & 1) != 0
    reverse_out = (((REVERSES & ~KEEPS) >> i_k) & 1) != 0

    image = i_b.to(tl.int64) * L
    p_x += image * XC
    p_dy += image * XC
    p_projected += (image * K + i_k) * C
    p_dprojected += ((i_d.to(tl.int64) * B * L + image) * K + i_k) * C
    if GROUPED:
        p_x += i_k * D
        p_dy += i_k * D
        p_dx += image * XC + i_k * D
    else:
        p_dx += (i_k.to(tl.int64) * B * L + image) * D
    if R == 0:
        p_ready += image * K * D + i_k * D
        p_dready += image * K * D + i_k * D
    o_chunk = (i_b.to(tl.int64) * chunks + i_c) * K + i_k
    tiles = tl.cdiv(L, BT)

    o_kd = i_k * D + o_d
    p_dbias += o_chunk * D
    p_dskip += o_chunk * D
    p_weight += o_kd[None, :] * R + o_r[:, None]
    p_dweight += (o_chunk * D + o_d[:, None]) * R + o_r[None, :]
    if KEEP_WEIGHT:
        m_w = m_d[None, :] & (o_r < R)[:, None]
        weight = tl.load(p_weight, mask=m_w, other=0.0)
        m_dw = m_d[:, None] & (o_r < R)[None, :]
        tl.store(p_dweight, tl.zeros((BD, RB), tl.float32), mask=m_dw)
    elif R > 0:
        for r0 in range(0, R, RB):
            tl.store(p_dweight + r0, tl.zeros((BD, RB), tl.float32), mask=m_d[:, None] & (o_r < R - r0)[None, :])
    zero = tl.zeros((BD,), tl.float32)
    tl.store(p_dbias + o_d, zero, mask=m_d)
    tl.store(p_dskip + o_d, zero, mask=m_d)
    for n in range(N):
        tl.store(p_dA + (o_chunk * N + n) * D + o_d, zero, mask=m_d)
        if not CHUNKED:
            tl.store(p_adjoints + (o_chunk * N + n) * D + o_d, zero, mask=m_d)
    tl.debug_barrier()

    begin = i_c * T
    end = tl.minimum(L, begin + T)
    for i in range(tl.cdiv(end - begin, BT)):
        i_tile = tl.cdiv(end, BT) - 1 - i
        t0 = i_tile * BT
        t = t0 + o_t
        m_t = t < end
        m = m_t[:, None] & m_d[None, :]
        pixel = pixels_of(t0, o_t, L, H, W, by_column, reverse, COLUMNS != 0, LONG_LINES, LARGE)
        pixel_out = pixel
        if KEEPS != 0:
            pixel_out = pixels_of(t0, o_t, L, H, W, by_column, reverse_out, COLUMNS != 0, LONG_LINES, LARGE)
        x = tl.load(p_x + pixel[:, None] * XC + o_d[None, :], mask=m, other=0.0).to(tl.float32)
        g = tl.load(p_dy + pixel_out[:, None] * XC + o_d[None, :], mask=m, other=0.0).to(tl.float32)
        bias = tl.load(p_bias + o_kd, mask=m_d, other=0.0) * LOG2E
        p_dts = p_projected + pixel[:, None] * (K * C) + o_r[None, :]
        if KEEP_WEIGHT:
            m_r = m_t[:, None] & (o_r < R)[None, :]
            dts = tl.load(p_dts, mask=m_r, other=0.0).to(tl.float32)
            z = tl.dot(dts, weight, input_precision=PRECISION) * LOG2E + bias[None, :]
        elif R > 0:
            z = tl.zeros((BT, BD), tl.float32)
            for r0 in range(0, R, RB):
                m_r = m_t[:, None] & (o_r < R - r0)[None, :]
                dts = tl.load(p_dts + r0, mask=m_r, other=0.0).to(tl.float32)
                weight = tl.load(p_weight + r0, mask=m_d[None, :] & (o_r < R - r0)[:, None], other=0.0)
                z = tl.dot(dts, weight, z, input_precision=PRECISION)
            z = z * LOG2E + bias[None, :]
        else:
            z = tl.load(p_ready + pixel[:, None] * (K * D) + o_d[None, :], mask=m, other=0.0).to(tl.float32)
            z = z * LOG2E + bias[None, :]
        u = time_step(z, SOFTPLUS, FAST, EXACT)
        dskip = tl.load(p_dskip + o_d, mask=m_d, other=0.0) + tl.sum(g * x, axis=0)
        tl.store(p_dskip + o_d, dskip, mask=m_d)
        skip = tl.load(p_skip + o_kd, mask=m_d, other=0.0)
        dx = skip[None, :] * g
        dstep = tl.zeros((BT, BD), tl.float32)
        p_BC = p_projected + pixel * (K * C) + R
        dBC = tl.zeros((BT, CP), tl.float32)
        o_tile = (i_b.to(tl.int64) * tiles + i_tile) * K + i_k
        for n in range(N):
            o_state = (o_chunk * N + n) * D + o_d
            A = tl.load(p_A + o_kd * N + n, mask=m_d, other=0.0)
            Bs = tl.load(p_BC + n, mask=m_t, other=0.0).to(tl.float32)
            Cs = tl.load(p_BC + (N + n), mask=m_t, other=0.0).to(tl.float32)
            a = tl.exp2(A[None, :] * u)
            start = tl.load(p_tiles + (o_tile * N + n) * D + o_d, mask=m_d, other=0.0)
            if CHUNKED:
                passed = tl.load(p_tile_sums + o_tile * D + o_d, mask=m_d, other=0.0)
                start += tl.exp2(A * passed) * tl.load(p_states + o_state, mask=m_d, other=0.0)
            # u is the time step over ln 2: the factor goes into Bs and A, and out of sums and the slope again
            Bs = Bs * LN2
            b = u * x * Bs[:, None]
            kept, _ = recur(a, b, start, BT, BD, True)
            adjoint = tl.load(p_adjoints + o_state, mask=m_d, other=0.0)
            if N > 1:  # read again rather than kept through the recurrence, for want of registers
                g = tl.load(p_dy + pixel_out[:, None] * XC + o_d[None, :], mask=m, other=0.0).to(tl.float32)
            dh, adjoint = recur_back(a, Cs[:, None] * g, adjoint, BT, BD)
            tl.store(p_adjoints + o_state, adjoint, mask=m_d)
            dBC = tl.where(o_c[None, :] == N + n, tl.sum(g * (kept + b), axis=1)[:, None], dBC)
            if EXACT or N > 1:
                x = tl.load(p_x + pixel[:, None] * XC + o_d[None, :], mask=m, other=0.0).to(tl.float32)
            dh_u = dh * u
            dBC = tl.where(o_c[None, :] == n, tl.sum(dh_u * x, axis=1)[:, None], dBC)
            dA = tl.load(p_dA + o_state, mask=m_d, other=0.0) + tl.sum(dh_u * kept, axis=0) * LN2
            tl.store(p_dA + o_state, dA, mask=m_d)
            dstep += dh * (x * Bs[:, None] + kept * (A * LN2)[None, :])
            dx += dh_u * Bs[:, None]
        p_dBC = p_dprojected + pixel[:, None] * (K * C) + (R + o_c[None, :])
        dBC = tl.where(o_c[None, :] < N, dBC * LN2, dBC)
        tl.store(p_dBC, dBC, mask=m_t[:, None] & (o_c < 2 * N)[None, :])
        dz = dstep * time_step_slope(u, SOFTPLUS, EXACT) * LOG2E
        dbias = tl.load(p_dbias + o_d, mask=m_d, other=0.0) + tl.sum(dz, axis=0)
        tl.store(p_dbias + o_d, dbias, mask=m_d)
        tl.store(p_dx + pixel[:, None] * XC + o_d[None, :], dx.to(p_dx.dtype.element_ty), mask=m)
        p_ddts = p_dprojected + pixel[:, None] * (K * C) + o_r[None, :]
        if KEEP_WEIGHT:
            tl.store(p_ddts, tl.dot(dz, tl.trans(weight), input_precision=PRECISION), mask=m_r)
            dweight = tl.load(p_dweight, mask=m_dw, other=0.0)
            tl.store(p_dweight, tl.dot(tl.trans(dz), dts, dweight, input_precision=PRECISION), mask=m_dw)
        elif R > 0:
            for r0 in range(0, R, RB):
                m_r = m_t[:, None] & (o_r < R - r0)[None, :]
                m_w = m_d[:, None] & (o_r < R - r0)[None, :]
                weight = tl.load(p_weight + r0, mask=m_d[None, :] & (o_r < R - r0)[:, None], other=0.0)
                tl.store(p_ddts + r0, tl.dot(dz, tl.trans(weight), input_precision=PRECISION), mask=m_r)
                dts = tl.load(p_dts + r0, mask=m_r, other=0.0).to(tl.float32)
                dweight = tl.load(p_dweight + r0, mask=m_w, other=0.0)
                dweight = tl.dot(tl.trans(dz), dts, dweight, input_precision=PRECISION)
                tl.store(p_dweight + r0, dweight, mask=m_w)
        else:
            tl.store(p_dready + pixel[:, None] * (K * D) + o_d[None, :], dz, mask=m)
        tl.debug_barrier()


def scan_backward(walks: Walks, dy: torch.Tensor, dtype: torch.dtype) -> Gradients:
    """Gradients of `scan` from `dy`, shaped as x: `(B, L, D)`, which all walks share, or `(B, L, K*D)`."""
    batch, length, count, channels, states, rank = walks.sizes()
    x = walks.x

    def empty(*shape, dtype=torch.float32):
        return x.new_empty(shape, dtype=dtype)

    def finish(dx, dprojected, dready, dweight, dbias, dskip, dA):
        return Gradients(
            x=dx,
            projected=dprojected.sum(0),
            ready=None if walks.ready is None else dready,
            weight=dweight.sum((0, 1)),
            bias=dbias.sum((0, 1)).flatten(),
            skip=dskip.sum((0, 1)).flatten(),
            A=dA.sum((0, 1)).transpose(1, 2).flatten(0, 1),
        )

    shared = constants(walks)
    block = block_of(states, rank, shared['EXACT'])
    blocks = triton.cdiv(channels, block)
    programs = batch * count * blocks
    chunks, chunk = chunking(max(1, programs), length, x.device)
    tiles = triton.cdiv(length, BT)
    outputs = (
        empty(batch, length, count * channels, dtype=dtype)
        if walks.grouped
        else empty(count, batch, length, channels, dtype=dtype),
        empty(blocks, batch, length, count, rank + 2 * states),
        x if walks.ready is None else empty(batch, length, count * channels),
        empty(batch, chunks, count, channels, rank),
        empty(batch, chunks, count, channels),
        empty(batch, chunks, count, channels),
        empty(batch, chunks, count, states, channels),
    )
    if batch == 0:
        return finish(*outputs)
    tile_states = empty(batch, tiles, count, states, channels)
    entering, adjoints = (empty(batch, chunks, count, states, channels) for _ in range(2))
    tile_sums = sums = tile_states  # not touched
    if chunks > 1:
        tile_sums = empty(batch, tiles, count, channels)
        sums = empty(batch, chunks, count, channels)
    ready = x if walks.ready is None else walks.ready
    sizes = (batch, length, *walks.grid, chunk, chunks)
    options = dict(shared, CHUNKED=chunks > 1, BD=block, num_warps=1, num_stages=1)
    inputs = (x, walks.projected, ready, walks.weight, walks.bias)
    with torch.cuda.device_of(x):
        _prepare[(programs * chunks,)](
            *inputs, walks.A, dy, tile_states, tile_sums, sums, entering, adjoints, *sizes, **options
        )
        if chunks > 1:
            carry(walks, sums, entering)
            carry(walks, sums, adjoints, back=True)
        _walk_back[(programs * chunks,)](
            *(dy, *inputs, walks.skip, walks.A, tile_states, tile_sums, entering, adjoints),
            *outputs,
            *sizes,
            RB=RANK_BLOCK,
            CP=padded(2 * states),
            **options,
        )
    return finish(*outputs)
