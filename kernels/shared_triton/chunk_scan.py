"""The scan of every chunk from the state that enters it, or of whole sequences from zero (Mamba-2's `chunk_scan`)."""

import triton
import triton.language as tl

from .inputs import inputs_of, load_inputs
from .numerics import LN2
from .recurrence import recurrence_step
from .routes import place_of
from .tiles import pair_rows, row_pointers, scaled, store_tile, zero_row


@triton.jit
def _add_state(ys, h, A, tile, Bs, Cs, SPEC: tl.constexpr):
    """One state of a tile: `h_t = 2^(A u_t) h_{t-1} + u_t x_t B_t`, and rows `y_t + C_t h_t`. Returns those and h."""
    BL: tl.constexpr = SPEC.BL
    rows = ()
    for i in tl.static_range(BL):
        h, _ = recurrence_step(h, A, tile.u[i], tile.uxs[i], Bs[i])
        rows = rows + (ys[i] + Cs[i] * h,)
    return rows, h


@triton.jit
def _scan_tile(start, h, skip, inputs, p_y, p_states, at, SPEC: tl.constexpr, RAGGED: tl.constexpr):
    """Write y of a tile; few states go in and out as `h`, many through `states`."""
    N: tl.constexpr = SPEC.N
    BL: tl.constexpr = SPEC.BL
    BD: tl.constexpr = SPEC.BD
    tile = load_inputs(start, inputs, at, SPEC, RAGGED)
    p_pairs = inputs.p_projected + SPEC.R
    offsets = tile.pixel * SPEC.P_STRIDE
    ys = ()
    for i in tl.static_range(BL):
        ys = ys + (skip * tile.xs[i],)
    states = ()
    if not SPEC.MANY:
        for n in tl.static_range(N):
            Bs, Cs = pair_rows(p_pairs + n, offsets, N, BL, BD)  # (BL, BD) each
            ys, state = _add_state(ys, h[n], inputs.A[n], tile, scaled(Bs, LN2, BL), Cs, SPEC)
            states = states + (state,)
    else:  # masks spare the first tile's read and the last one's write
        m_enters = at.m_d if SPEC.CHUNKED else (at.m_d & (start > at.begin)) != 0
        m_leaves = (at.m_d & (start + BL < at.end)) != 0
        for n in range(N):
            A = tl.load(inputs.p_A + n, mask=at.m_d, other=0.0)  # (BD,)
            state = tl.load(p_states + n * SPEC.D, mask=m_enters, other=0.0)  # (BD,)
            Bs, Cs = pair_rows(p_pairs + n, offsets, N, BL, BD)  # (BL, BD) each
            ys, state = _add_state(ys, state, A, tile, Bs, Cs, SPEC)
            tl.store(p_states + n * SPEC.D, state, mask=m_leaves)
        tl.debug_barrier()
    store_tile(row_pointers(p_y, tile.pixel_out * SPEC.X_STRIDE, SPEC.VECTOR), ys, tile.mask, BL, BD)
    return states


@triton.jit(do_not_specialize=['B', 'H', 'W', 'T'])
def chunk_scan(
    p_x, p_projected, p_steps, p_bias, p_skip, p_A, p_states, p_y, B, H, W, T, SPEC: tl.constexpr
):  # fmt: skip
    """`y_t = sum_n C_tn h_tn + skip x_t` along every walk, `(K, B, L, D)`, or grouped `(B, L, K*D)`.

    `states (B, chunks, K, N, D)`: what enters each chunk. Not CHUNKED: it starts from zero, and of few states there is
    no such buffer.
    """
    N: tl.constexpr = SPEC.N
    D: tl.constexpr = SPEC.D
    BL: tl.constexpr = SPEC.BL
    at = place_of(H, W, T, SPEC)
    inputs = inputs_of(p_x, p_projected, p_steps, p_bias, p_A, at, SPEC)
    skip = tl.load(p_skip + at.o_kd, mask=at.m_d, other=0.0)  # (BD,)
    p_y += at.o_x if SPEC.GROUPED else at.i_k.to(tl.int64) * B * (H * W) * D + at.o_x
    if SPEC.CHUNKED or SPEC.MANY:
        p_states += at.i_chunk * (N * D) + at.o_d  # one state after another, D apart
    h = ()
    if not SPEC.MANY:
        for n in tl.static_range(N):
            h = h + (tl.load(p_states + n * D, mask=at.m_d, other=0.0) if SPEC.CHUNKED else zero_row(SPEC.BD),)  # (BD,)
    full = at.end - (at.end - at.begin) % BL
    for start in range(at.begin, full, BL):
        h = _scan_tile(start, h, skip, inputs, p_y, p_states, at, SPEC, False)
    if full < at.end:
        _scan_tile(full, h, skip, inputs, p_y, p_states, at, SPEC, True)
