"""What a chunk adds to the state that enters it (Mamba-2's `chunk_state`): forward, and for the backward pass."""

import triton
import triton.language as tl

from .inputs import inputs_of, load_inputs
from .numerics import LN2
from .recurrence import end_state
from .routes import place_of
from .tiles import pair_rows, repeated, scaled, zero_row


@triton.jit
def _state_tile(start, h, total, inputs, p_states, at, SPEC: tl.constexpr, RAGGED: tl.constexpr):
    """State and sum of the time steps after a tile; many states go through `states`."""
    N: tl.constexpr = SPEC.N
    BL: tl.constexpr = SPEC.BL
    BD: tl.constexpr = SPEC.BD
    tile = load_inputs(start, inputs, at, SPEC, RAGGED)
    p_pairs = inputs.p_projected + SPEC.R
    offsets = tile.pixel * SPEC.P_STRIDE
    for i in tl.static_range(BL):
        total += tile.u[i]
    states = ()
    if not SPEC.MANY:
        for n in tl.static_range(N):
            Bs, _ = pair_rows(p_pairs + n, offsets, N, BL, BD)  # (BL, BD)
            states = states + (end_state(h[n], inputs.A[n], tile.u, tile.uxs, scaled(Bs, LN2, BL), SPEC),)
    else:
        m_later = (at.m_d & (start > at.begin)) != 0
        for n in range(N):
            A = tl.load(inputs.p_A + n, mask=at.m_d, other=0.0)  # (BD,)
            state = tl.load(p_states + n * SPEC.D, mask=m_later, other=0.0)  # (BD,)
            Bs, _ = pair_rows(p_pairs + n, offsets, N, BL, BD)  # (BL, BD)
            tl.store(p_states + n * SPEC.D, end_state(state, A, tile.u, tile.uxs, Bs, SPEC), mask=at.m_d)
        tl.debug_barrier()
    return states, total


@triton.jit(do_not_specialize=['H', 'W', 'T'])
def chunk_state(p_x, p_projected, p_steps, p_bias, p_A, p_sums, p_states, H, W, T, SPEC: tl.constexpr):
    """From zero, `h_t = 2^(A u_t) h_{t-1} + ln2 u_t x_t B_t` to each chunk's end; there `states = h`, `sums = sum u_t`.

    `sums (B, chunks, K, D)`, `states (B, chunks, K, N, D)`. The last chunk's, which nobody needs, are those of a last
    tile filled up with its last position.
    """
    N: tl.constexpr = SPEC.N
    D: tl.constexpr = SPEC.D
    BL: tl.constexpr = SPEC.BL
    at = place_of(H, W, T, SPEC)
    inputs = inputs_of(p_x, p_projected, p_steps, p_bias, p_A, at, SPEC)
    p_states += at.i_chunk * (N * D) + at.o_d  # one state after another, D apart
    total = zero_row(SPEC.BD)
    h = repeated(total, 0 if SPEC.MANY else N)
    full = at.end - (at.end - at.begin) % BL
    for start in range(at.begin, full, BL):
        h, total = _state_tile(start, h, total, inputs, p_states, at, SPEC, False)
    if full < at.end:
        h, total = _state_tile(full, h, total, inputs, p_states, at, SPEC, True)
    tl.store(p_sums + at.i_chunk * D + at.o_d, total, mask=at.m_d)
    if not SPEC.MANY:
        for n in tl.static_range(N):
            tl.store(p_states + n * D, h[n], mask=at.m_d)
