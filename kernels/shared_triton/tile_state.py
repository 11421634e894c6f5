"""What the backward pass keeps of a scan: the states that enter tiles, and of chunks what adjoints need."""

import triton
import triton.language as tl

from .inputs import inputs_of, load_inputs
from .numerics import LN2
from .recurrence import end_state, recurrence_step
from .routes import place_of
from .tiles import load_tile, pair_rows, repeated, row_pointers, scaled, zero_row


@triton.jit
def _keep_tile(start, h, inputs, p_tiles, p_states, at, SPEC: tl.constexpr, RAGGED: tl.constexpr):
    """Write the states that enter a tile; those after it are returned, or if they are many go through `states`."""
    N: tl.constexpr = SPEC.N
    BL: tl.constexpr = SPEC.BL
    D: tl.constexpr = SPEC.D
    p_tiles += (start // BL + tl.zeros((), tl.int64)) * (SPEC.K * N * D)
    tile = load_inputs(start, inputs, at, SPEC, RAGGED)
    p_pairs = inputs.p_projected + SPEC.R
    offsets = tile.pixel * SPEC.P_STRIDE
    states = ()
    if not SPEC.MANY:
        for n in tl.static_range(N):
            tl.store(p_tiles + n * D, h[n], mask=at.m_d)
        for n in tl.static_range(N):
            Bs, _ = pair_rows(p_pairs + n, offsets, N, BL, SPEC.BD)  # (BL, BD)
            states = states + (end_state(h[n], inputs.A[n], tile.u, tile.uxs, scaled(Bs, LN2, BL), SPEC),)
    else:
        m_enters = (at.m_d & (start > at.begin)) != 0
        m_leaves = (at.m_d & (start + BL < at.end)) != 0
        for n in range(N):
            A = tl.load(inputs.p_A + n, mask=at.m_d, other=0.0)  # (BD,)
            state = tl.load(p_states + n * D, mask=m_enters, other=0.0)  # (BD,)
            tl.store(p_tiles + n * D, state, mask=at.m_d)
            Bs, _ = pair_rows(p_pairs + n, offsets, N, BL, SPEC.BD)  # (BL, BD)
            tl.store(p_states + n * D, end_state(state, A, tile.u, tile.uxs, Bs, SPEC), mask=m_leaves)
        tl.debug_barrier()
    return states


@triton.jit(do_not_specialize=['H', 'W', 'T'])
def tile_state(p_x, p_projected, p_steps, p_bias, p_A, p_tiles, p_states, H, W, T, SPEC: tl.constexpr):
    """Scan whole sequences from zero and write `tiles (B, tiles, K, N, D)`, `h_t` before each tile.

    `states (B, 1, K, N, D)`: where many states live; of few there is no such buffer.
    """
    N: tl.constexpr = SPEC.N
    BL: tl.constexpr = SPEC.BL
    at = place_of(H, W, T, SPEC)
    inputs = inputs_of(p_x, p_projected, p_steps, p_bias, p_A, at, SPEC)
    p_tiles += at.tile * (N * SPEC.D) + at.o_d  # one state after another, D apart
    if SPEC.MANY:
        p_states += at.i_chunk * (N * SPEC.D) + at.o_d
    h = repeated(zero_row(SPEC.BD), 0 if SPEC.MANY else N)
    full = at.end - (at.end - at.begin) % BL
    for start in range(at.begin, full, BL):
        h = _keep_tile(start, h, inputs, p_tiles, p_states, at, SPEC, False)
    if full < at.end:
        _keep_tile(full, h, inputs, p_tiles, p_states, at, SPEC, True)


@triton.jit
def _state_and_adjoint(h, decay, share, A, tile, Bs, Cs, gs, SPEC: tl.constexpr):
    """One state of a tile forward: h, the product of decays, what it adds to the adjoint at the chunk's start."""
    BL: tl.constexpr = SPEC.BL
    for i in tl.static_range(BL):
        h, a = recurrence_step(h, A, tile.u[i], tile.uxs[i], Bs[i])
        decay *= a
        share += decay * (Cs[i] * gs[i])
    return h, decay, share


@triton.jit
def _keep_chunk_tile(
    start, carried, inputs, p_dy, p_tiles, p_tile_sums, p_states, p_adjoints, at, SPEC: tl.constexpr,
    RAGGED: tl.constexpr,
):  # fmt: skip
    """As `_keep_tile`, with the sum of the chunk's time steps before the tile and the adjoint's share."""
    N: tl.constexpr = SPEC.N
    D: tl.constexpr = SPEC.D
    BL: tl.constexpr = SPEC.BL
    BD: tl.constexpr = SPEC.BD
    h, decays, shares, total = carried
    i_tile = start // BL + tl.zeros((), tl.int64)
    p_tiles += i_tile * (SPEC.K * N * D)
    tl.store(p_tile_sums + i_tile * (SPEC.K * D), total, mask=at.m_d)
    before = total
    tile = load_inputs(start, inputs, at, SPEC, RAGGED)
    # zero past the end, so that nothing is added there
    gs = load_tile(row_pointers(p_dy, tile.pixel_out * SPEC.X_STRIDE, SPEC.VECTOR), tile.mask, BL, BD)  # (BL, BD)
    p_pairs = inputs.p_projected + SPEC.R
    offsets = tile.pixel * SPEC.P_STRIDE
    for i in tl.static_range(BL):
        total += tile.u[i]
    states = ()
    new_decays = ()
    new_shares = ()
    if not SPEC.MANY:
        for n in tl.static_range(N):
            tl.store(p_tiles + n * D, h[n], mask=at.m_d)
        for n in tl.static_range(N):
            Bs, Cs = pair_rows(p_pairs + n, offsets, N, BL, BD)  # (BL, BD) each
            Bs = scaled(Bs, LN2, BL)
            state, decay, share = _state_and_adjoint(h[n], decays[n], shares[n], inputs.A[n], tile, Bs, Cs, gs, SPEC)
            states = states + (state,)
            new_decays = new_decays + (decay,)
            new_shares = new_shares + (share,)
    else:
        m_later = (at.m_d & (start > at.begin)) != 0
        for n in range(N):
            A = tl.load(inputs.p_A + n, mask=at.m_d, other=0.0)  # (BD,)
            state = tl.load(p_states + n * D, mask=m_later, other=0.0)  # (BD,)
            tl.store(p_tiles + n * D, state, mask=at.m_d)
            share = tl.load(p_adjoints + n * D, mask=m_later, other=0.0)  # (BD,)
            Bs, Cs = pair_rows(p_pairs + n, offsets, N, BL, BD)  # (BL, BD) each
            state, _, share = _state_and_adjoint(state, tl.exp2(A * before), share, A, tile, Bs, Cs, gs, SPEC)
            tl.store(p_adjoints + n * D, share, mask=at.m_d)
            tl.store(p_states + n * D, state, mask=at.m_d)
        tl.debug_barrier()
    return states, new_decays, new_shares, total


@triton.jit(do_not_specialize=['H', 'W', 'T'])
def chunk_state_bwd(
    p_x, p_projected, p_steps, p_bias, p_A, p_dy, p_tiles, p_tile_sums, p_sums, p_states, p_adjoints, H, W, T,
    SPEC: tl.constexpr,
):  # fmt: skip
    """What `chunk_state` and `tile_state` write, and each chunk's share of the adjoint at its start, in one scan.

    `adjoints[c] = sum_t 2^(A (u_1 + ... + u_t)) C_t dy_t` over the chunk, `(B, chunks, K, N, D)`. `tiles` hold states
    of a scan from zero at the chunk's start, `tile_sums (B, tiles, K, D)` the chunk's time steps before each tile: with
    the state that enters the chunk they make the tile's. Apart, two scans would project and read everything twice.

    For D=96 in bfloat16 this takes 4 % more instructions on sm_90 than before it was a kernel of its own: ptxas finds a
    tile's addresses in uniform registers. With `maxnreg=255` it is 2 %, at 12 programs a multiprocessor instead of 16.
    """
    N: tl.constexpr = SPEC.N
    D: tl.constexpr = SPEC.D
    BL: tl.constexpr = SPEC.BL
    at = place_of(H, W, T, SPEC)
    inputs = inputs_of(p_x, p_projected, p_steps, p_bias, p_A, at, SPEC)
    p_dy += at.o_x
    p_tiles += at.tile * (N * D) + at.o_d
    p_tile_sums += at.tile * D + at.o_d
    p_states += at.i_chunk * (N * D) + at.o_d  # one state after another, D apart
    p_adjoints += at.i_chunk * (N * D) + at.o_d
    zero = zero_row(SPEC.BD)
    h = repeated(zero, 0 if SPEC.MANY else N)
    decays = repeated(zero + 1.0, 0 if SPEC.MANY else N)
    carried = (h, decays, h, zero)
    full = at.end - (at.end - at.begin) % BL
    for start in range(at.begin, full, BL):
        carried = _keep_chunk_tile(
            start, carried, inputs, p_dy, p_tiles, p_tile_sums, p_states, p_adjoints, at, SPEC, False
        )
    if full < at.end:
        carried = _keep_chunk_tile(
            full, carried, inputs, p_dy, p_tiles, p_tile_sums, p_states, p_adjoints, at, SPEC, True
        )
    h, decays, shares, total = carried
    tl.store(p_sums + at.i_chunk * D + at.o_d, total, mask=at.m_d)
    if not SPEC.MANY:
        for n in tl.static_range(N):
            tl.store(p_states + n * D, h[n], mask=at.m_d)
            tl.store(p_adjoints + n * D, shares[n], mask=at.m_d)
