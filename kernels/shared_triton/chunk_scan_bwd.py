"""The scan's gradients: every tile scanned again from its stored state, then against time with the adjoint.

    dh_t += C_t dy_t          dC_t = sum_d dy_t h_t                       dB_t = sum_d dh_t dt_t x_t
    dx_t = skip dy_t + sum_n dh_t B_t dt_t                                dA = sum_t dh_t a_t h_{t-1} dt_t
    d dt_t = sum_n dh_t (B_t x_t + A a_t h_{t-1})                         dh_{t-1} = a_t dh_t

Sums over channels are one partial a channel block, sums over positions one partial a program; small reductions add them
in a fixed order. No atomics. Registers are the limit: where a value can be had again for two instructions, it is not
kept.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .numerics import LN2, LOG2E
from .recurrence import recurrence_step, separate_product, times_slope
from .routes import pixels_of, place_of
from .steps import rounded, step_weights, time_steps, weight_block
from .tiles import from_rows, hidden_zero, load_tile, pair_rows, repeated, row_pointers, store_tile, turned, zero_row


class Pointers(NamedTuple):
    """Where a program reads and writes; `(BD,)` but for those of weights, projections and their gradients.

    Attributes:
        p_x, p_dy, p_projected, p_steps, p_A: see `chunk_scan`; `steps` ready time steps at the image, or weights.
        p_bias, p_skip: the walk's channels.
        o_k: the walk's first channel, where its weights begin.
        p_tiles, p_tile_sums: of the walk's first tile.
        p_states, p_adjoints: of the chunk. What a kernel is called without is here `tiles` and not read: Triton 3.6
            cannot return None in a tuple.
        p_dx, p_dprojected, p_dsteps, p_dA: gradients; `dsteps` of ready time steps, or the chunk's of weights.
    """

    p_x: tl.tensor
    p_dy: tl.tensor
    p_projected: tl.tensor
    p_steps: tl.tensor
    p_A: tl.tensor
    p_bias: tl.tensor
    p_skip: tl.tensor
    o_k: tl.tensor
    p_tiles: tl.tensor
    p_tile_sums: tl.tensor
    p_states: tl.tensor
    p_adjoints: tl.tensor
    p_dx: tl.tensor
    p_dprojected: tl.tensor
    p_dsteps: tl.tensor
    p_dA: tl.tensor


class Carried(NamedTuple):
    """What goes from tile to tile against time: rows `(BD,)` of few states, sums, and a zero (see `hidden_zero`)."""

    adjoints: tl.tuple
    dAs: tl.tuple
    dskip: tl.tensor
    dbias: tl.tensor
    nothing: tl.tensor


@triton.jit
def _hidden(p, nothing, SPEC: tl.constexpr):
    """The same pointers, of which the compiler must not keep what depends on them (see `hidden_zero`)."""
    return Pointers(
        p_x=p.p_x + nothing,
        p_dy=p.p_dy + nothing,
        p_projected=p.p_projected + nothing,
        p_steps=p.p_steps,
        p_A=p.p_A + nothing,
        p_bias=p.p_bias + nothing,
        p_skip=p.p_skip + nothing,
        o_k=p.o_k + nothing,
        p_tiles=p.p_tiles,
        p_tile_sums=p.p_tile_sums + nothing,
        p_states=p.p_states + nothing,
        p_adjoints=p.p_adjoints + nothing,
        p_dx=p.p_dx + nothing,
        p_dprojected=p.p_dprojected + nothing,
        p_dsteps=p.p_dsteps,
        p_dA=p.p_dA + nothing,
    )


@triton.jit
def _adjoint_rows(adjoint, hs, A, u, uxs, gs, Bs, Cs, along_B, along_A, SPEC: tl.constexpr):
    """One state of a tile against time; see `_state_bwd`. The rows of dB and dC come as one tile `(2 BL, BD)`."""
    BL: tl.constexpr = SPEC.BL
    EXACT: tl.constexpr = SPEC.FAST and SPEC.EXACT
    A_ln2 = A * LN2
    # the scan goes backwards and rows are collected that way; turned round at the end
    dA = zero_row(SPEC.BD)
    back_B = ()
    back_A = ()
    back_dB = ()
    back_dC = ()
    for i in tl.static_range(BL - 1, -1, -1):
        dh = adjoint + Cs[i] * gs[i]
        adjoint = tl.exp2(A * u[i]) * dh
        da = adjoint * hs[i]
        dA += da * u[i]
        back_dC = back_dC + (separate_product(gs[i], hs[i + 1], EXACT),)
        back_dB = back_dB + (separate_product(dh, uxs[i], EXACT),)
        if SPEC.N == 1:
            back_B = back_B + (dh * Bs[i],)
            back_A = back_A + (da * A_ln2,)
        else:
            back_B = back_B + (along_B[i] + dh * Bs[i],)
            back_A = back_A + (along_A[i] + da * A_ln2,)
    sums = from_rows(turned(back_dB, BL) + turned(back_dC, BL), 2 * BL, SPEC.BD)
    return adjoint, dA * (LN2 * LN2), turned(back_B, BL), turned(back_A, BL), sums


@triton.jit
def _state_bwd(p, n, i_tile, passed, tile, adjoint, along_B, along_A, at, SPEC: tl.constexpr):
    """Write dB and dC of a state; its adjoint before a tile, dA, and what it adds to `along_B` and `along_A`.

    `along_B`: the gradient of time step times x. `along_A`: that of the time step through the decay.
    """
    N: tl.constexpr = SPEC.N
    BL: tl.constexpr = SPEC.BL
    BD: tl.constexpr = SPEC.BD
    D: tl.constexpr = SPEC.D
    u, uxs, gs, offsets, m_l = tile
    A = tl.load(p.p_A + n, mask=at.m_d, other=0.0)  # (BD,)
    p_tile = p.p_tiles + i_tile.to(tl.int64) * (SPEC.K * N * D)
    h = tl.load(p_tile + n * D, mask=at.m_d, other=0.0)  # (BD,)
    if SPEC.CHUNKED:
        h += tl.exp2(A * passed) * tl.load(p.p_states + n * D, mask=at.m_d, other=0.0)
    Bs, Cs = pair_rows(p.p_projected + (SPEC.R + n), offsets, N, BL, SPEC.BD)  # (BL, BD) each
    hs = (h * LOG2E,)  # u is the time step over ln 2 and so are the states here
    for i in tl.static_range(BL):
        h, _ = recurrence_step(hs[i], A, u[i], uxs[i], Bs[i])
        hs = hs + (h,)
    # for want of registers decays are computed again rather than kept; behind the barrier the compiler must obey
    tl.debug_barrier()
    A = tl.load(p.p_A + n, mask=at.m_d, other=0.0)  # (BD,)
    adjoint, dA, along_B, along_A, sums = _adjoint_rows(adjoint, hs, A, u, uxs, gs, Bs, Cs, along_B, along_A, SPEC)
    if SPEC.EXACT:
        sums = tl.sum(sums, axis=1) * LN2
    else:  # a product with ones, all columns of which are the same, is cheaper
        ones = rounded(tl.full((BD, 16), 1.0, tl.float32), SPEC)
        sums = tl.sum(tl.dot(rounded(sums, SPEC), ones, input_precision=SPEC.PRECISION), axis=1) * (LN2 / 16)
    p_pairs = (p.p_dprojected + (SPEC.R + n) + tl.arange(0, 2) * N)[None, :] + offsets[:, None]
    tl.store(p_pairs, tl.trans(tl.reshape(sums, (2, BL))), mask=m_l)
    return adjoint, dA, along_B, along_A


@triton.jit
def _states_bwd(p, i_tile, tile, adjoints, dAs, at, SPEC: tl.constexpr):
    """`_state_bwd` of all states; adjoints and dA of many live in memory."""
    N: tl.constexpr = SPEC.N
    D: tl.constexpr = SPEC.D
    zero = zero_row(SPEC.BD)
    along_B = repeated(zero, SPEC.BL if N > 1 else 0)
    along_A = along_B
    passed = 0.0
    if SPEC.CHUNKED:
        p_passed = p.p_tile_sums + i_tile.to(tl.int64) * (SPEC.K * D)
        passed = tl.load(p_passed, mask=at.m_d, other=0.0)  # (BD,)
    if not SPEC.MANY:
        new_adjoints = ()
        new_dAs = ()
        for n in tl.static_range(N):
            adjoint, dA, along_B, along_A = _state_bwd(
                p, n, i_tile, passed, tile, adjoints[n], along_B, along_A, at, SPEC
            )
            new_adjoints = new_adjoints + (adjoint,)
            new_dAs = new_dAs + (dAs[n] + dA,)
        adjoints = new_adjoints
        dAs = new_dAs
    else:
        for n in range(N):
            adjoint = tl.load(p.p_adjoints + n * D, mask=at.m_d, other=0.0)  # (BD,)
            adjoint, dA, along_B, along_A = _state_bwd(p, n, i_tile, passed, tile, adjoint, along_B, along_A, at, SPEC)
            tl.store(p.p_adjoints + n * D, adjoint, mask=at.m_d)
            tl.store(p.p_dA + n * D, tl.load(p.p_dA + n * D, mask=at.m_d, other=0.0) + dA, mask=at.m_d)
        tl.debug_barrier()
    return adjoints, dAs, along_B, along_A


@triton.jit
def _project_bwd(dzs, weights, pixel, p, nothing, m_l, at, SPEC: tl.constexpr):
    """Gradients of the time steps' projection: `d dts = dz W^T` and, added to what is there, `dW += dts^T dz`."""
    RB: tl.constexpr = SPEC.RB
    BLOCKS: tl.constexpr = SPEC.RANK_BLOCKS
    dz = rounded(from_rows(dzs, SPEC.BL, SPEC.BD), SPEC)
    o_r = tl.arange(0, RB)
    p_dts = (p.p_projected + nothing + o_r)[:, None] + (pixel * SPEC.P_STRIDE)[None, :]  # transposed
    p_ddts = (p.p_dprojected + nothing + o_r)[None, :] + (pixel * SPEC.P_STRIDE)[:, None]
    p_dweights = (p.p_dsteps + nothing + o_r * SPEC.D)[:, None] + tl.arange(0, SPEC.BD)[None, :]
    for i in tl.static_range(BLOCKS):
        m_r = ((o_r < SPEC.R - i * RB) | (SPEC.R - i * RB >= RB))[None, :]
        weight = weight_block(i, p.p_steps, p.o_k, at.i_d, SPEC) if SPEC.MANY else weights[i]  # (RB, BD)
        ddts = tl.dot(dz, rounded(tl.trans(weight), SPEC), input_precision=SPEC.PRECISION)
        tl.store(p_ddts + i * RB, ddts, mask=m_l & m_r)
        m_w = tl.trans(m_r) & at.m_d[None, :]
        dweight = tl.load(p_dweights + i * (RB * SPEC.D), mask=m_w, other=0.0)  # (RB, BD)
        dts = rounded(tl.load(p_dts + i * RB, mask=tl.trans(m_r), other=0.0), SPEC)  # (RB, BL)
        dweight = tl.dot(dts, dz, dweight, input_precision=SPEC.PRECISION)
        tl.store(p_dweights + i * (RB * SPEC.D), dweight, mask=m_w)
    tl.debug_barrier()


@triton.jit
def _tile_bwd(i_tile, carried, weights, bias, skip, p, at, SPEC: tl.constexpr):
    """A tile. Past the end the last position is repeated, where dy and the adjoint are zero: nothing is added."""
    BL: tl.constexpr = SPEC.BL
    BD: tl.constexpr = SPEC.BD
    adjoints, dAs, dskip, dbias, _ = carried
    start = i_tile * BL
    last = at.end - 1 - start
    nothing = hidden_zero(start)
    if SPEC.MANY:
        p = _hidden(p, nothing, SPEC)
        bias = tl.load(p.p_bias, mask=at.m_d, other=0.0) * LOG2E  # (BD,)
        skip = tl.load(p.p_skip, mask=at.m_d, other=0.0)  # (BD,)
        weights = step_weights(p.p_steps, p.o_k, at.i_d, SPEC)
    o_l = tl.arange(0, BL)
    clamped = tl.minimum(o_l, last)
    pixel = pixels_of(start, clamped, at.route, SPEC)
    u = time_steps(pixel, p.p_projected, p.p_steps, weights, bias, at.m_d, SPEC)
    pixel_out = pixels_of(start, clamped, at.route_out, SPEC)
    m_l = (o_l <= last)[:, None]
    mask = m_l & at.m_d[None, :]
    xs = load_tile(row_pointers(p.p_x, pixel * SPEC.X_STRIDE, SPEC.VECTOR), at.m_d[None, :], BL, BD)  # (BL, BD)
    gs = load_tile(row_pointers(p.p_dy, pixel_out * SPEC.X_STRIDE, SPEC.VECTOR), mask, BL, BD)  # (BL, BD)
    uxs = ()
    for i in tl.static_range(BL):
        dskip += gs[i] * xs[i]
        uxs = uxs + (u[i] * xs[i],)
    tile = (u, uxs, gs, pixel * SPEC.P_STRIDE, m_l)
    adjoints, dAs, along_B, along_A = _states_bwd(p, i_tile, tile, adjoints, dAs, at, SPEC)
    if SPEC.MANY:
        clamped = tl.minimum(o_l, last + nothing)
        pixel = pixels_of(start + nothing, clamped, at.route, SPEC)
    xs = load_tile(row_pointers(p.p_x, pixel * SPEC.X_STRIDE, SPEC.VECTOR), at.m_d[None, :], BL, BD)  # (BL, BD)
    dzs = ()
    dxs = ()
    for i in tl.static_range(BL):
        dxs = dxs + (skip * gs[i] + along_B[i] * (u[i] * LN2),)
        dz = times_slope(along_B[i] * xs[i] + along_A[i], u[i], SPEC.SOFTPLUS, SPEC.EXACT)
        dbias += dz
        dzs = dzs + (dz,)
    store_tile(row_pointers(p.p_dx, pixel * SPEC.X_STRIDE, SPEC.VECTOR), dxs, mask, BL, BD)
    if SPEC.R > 0:
        _project_bwd(dzs, weights, pixel, p, nothing, m_l, at, SPEC)
    else:
        store_tile(row_pointers(p.p_dsteps, pixel * (SPEC.K * SPEC.D), SPEC.VECTOR), dzs, mask, BL, BD)
    return Carried(adjoints=adjoints, dAs=dAs, dskip=dskip, dbias=dbias, nothing=nothing)


@triton.jit
def _clear(p, at, SPEC: tl.constexpr):
    """Zero what tiles add to in memory; the adjoints of few states, from registers or what enters the chunk."""
    N: tl.constexpr = SPEC.N
    D: tl.constexpr = SPEC.D
    RB: tl.constexpr = SPEC.RB
    BD: tl.constexpr = SPEC.BD
    BLOCKS: tl.constexpr = SPEC.RANK_BLOCKS
    zero = zero_row(SPEC.BD)
    adjoints = ()
    dAs = ()
    if not SPEC.MANY:
        for n in tl.static_range(N):
            if SPEC.CHUNKED:
                adjoints = adjoints + (tl.load(p.p_adjoints + n * D, mask=at.m_d, other=0.0),)  # (BD,)
            else:
                adjoints = adjoints + (zero,)
            dAs = dAs + (zero,)
    else:
        for n in range(N):
            tl.store(p.p_dA + n * D, zero, mask=at.m_d)
            if not SPEC.CHUNKED:
                tl.store(p.p_adjoints + n * D, zero, mask=at.m_d)
        tl.debug_barrier()
    if SPEC.R > 0:
        o_r = tl.arange(0, RB)
        p_dweights = (p.p_dsteps + o_r * D)[:, None] + tl.arange(0, BD)[None, :]
        for i in tl.static_range(BLOCKS):
            m_w = (o_r < SPEC.R - i * RB)[:, None] & at.m_d[None, :]
            tl.store(p_dweights + i * (RB * D), tl.zeros((RB, BD), tl.float32), mask=m_w)
    tl.debug_barrier()
    return adjoints, dAs


@triton.jit(do_not_specialize=['B', 'H', 'W', 'T'])
def chunk_scan_bwd(
    p_dy, p_x, p_projected, p_steps, p_bias, p_skip, p_A, p_tiles, p_tile_sums, p_states, p_adjoints,
    p_dx, p_dprojected, p_dsteps, p_sums, B, H, W, T, SPEC: tl.constexpr,
):  # fmt: skip
    """Write the gradients: `dx` as `chunk_scan` y, `dprojected (blocks, B, L, K, R + 2N)`, `dsteps`, `sums`.

    `states` and `adjoints (B, chunks, K, N, D)`: what enters each chunk at its start and at its end. Not CHUNKED: both
    are zero; many adjoints live in that buffer. `dsteps (B, L, K*D)`, or of weights `(B, chunks, K, R, D)`, summed in
    memory. `sums (B, chunks, K, N + 2, D)`: dA of every state, dskip, dbias. A barrier a tile orders what lanes write
    and read.
    """
    N: tl.constexpr = SPEC.N
    D: tl.constexpr = SPEC.D
    BL: tl.constexpr = SPEC.BL
    at = place_of(H, W, T, SPEC)
    walk = at.pixel * SPEC.K + at.i_k
    o_state = at.i_chunk * (N * D) + at.o_d  # one state after another, D apart
    is_weight: tl.constexpr = SPEC.R > 0
    p = Pointers(
        p_x=p_x + at.o_x,
        p_dy=p_dy + at.o_x,
        p_projected=p_projected + walk * SPEC.COLUMNS_OF_WALK,
        p_steps=p_steps if is_weight else p_steps + walk * D + at.o_d,
        p_A=p_A + at.o_kd * N,
        p_bias=p_bias + at.o_kd,
        p_skip=p_skip + at.o_kd,
        o_k=at.i_k * D,
        p_tiles=p_tiles + at.tile * (N * D) + at.o_d,
        p_tile_sums=p_tile_sums + at.tile * D + at.o_d if SPEC.CHUNKED else p_tiles,
        p_states=p_states + o_state if SPEC.CHUNKED else p_tiles,
        p_adjoints=p_adjoints + o_state if SPEC.CHUNKED or SPEC.MANY else p_tiles,
        p_dx=p_dx + at.o_x if SPEC.GROUPED else p_dx + at.i_k.to(tl.int64) * B * (H * W) * D + at.o_x,
        p_dprojected=p_dprojected
        + ((at.i_d.to(tl.int64) * B * (H * W) + at.pixel) * SPEC.K + at.i_k) * SPEC.COLUMNS_OF_WALK,
        p_dsteps=p_dsteps + at.i_chunk * (SPEC.R * D) + at.i_d * SPEC.BD if is_weight else p_dsteps + walk * D + at.o_d,
        p_dA=p_sums + at.i_chunk * ((N + 2) * D) + at.o_d,
    )
    bias = tl.load(p.p_bias, mask=at.m_d, other=0.0) * LOG2E  # (BD,)
    skip = tl.load(p.p_skip, mask=at.m_d, other=0.0)  # (BD,)
    weights = ()
    if not SPEC.MANY:
        weights = step_weights(p_steps, at.i_k * D, at.i_d, SPEC)
    adjoints, dAs = _clear(p, at, SPEC)
    zero = zero_row(SPEC.BD)
    carried = Carried(adjoints=adjoints, dAs=dAs, dskip=zero, dbias=zero, nothing=0)
    after = tl.cdiv(at.end, BL)
    for i in range(tl.cdiv(at.end - at.begin, BL)):
        carried = _tile_bwd(after - 1 - i, carried, weights, bias, skip, p, at, SPEC)
    i_chunk = ((tl.program_id(0) + carried.nothing) // SPEC.BLOCKS).to(tl.int64)  # the same, but not kept
    p_sums += i_chunk * ((N + 2) * D) + at.o_d
    tl.store(p_sums + N * D, carried.dskip, mask=at.m_d)
    tl.store(p_sums + (N + 1) * D, carried.dbias, mask=at.m_d)
    if not SPEC.MANY:
        for n in tl.static_range(N):
            tl.store(p_sums + n * D, carried.dAs[n], mask=at.m_d)
