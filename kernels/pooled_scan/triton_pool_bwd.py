"""The adjoint of `triton_pool` and of the skip: gradients of the tokens, of the convolutions' taps and of their biases.

The adjoint of a token's convolution reads behind it, that of the other direction before it: dx comes KS - 1 tokens late
(`late`: the gradients before SiLU, `dz`, of the tokens that are not done yet). Every kernel below finds the gradient of
the activations, `du`, and shares the rest.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..shared_triton.launch import Launch
from ..shared_triton.numerics import BT, from_rows, keep, share, silu, silu_slope, to_rows
from ..shared_triton.runs import program_of_run
from ..shared_triton.sums import collecting
from .triton_lines import (
    GRID,
    Lines,
    begins_in,
    convolve,
    extend_window,
    grid_of,
    interleaved_line,
    line_of,
    lines_until,
    locate,
    pooled_of,
    read_line,
    read_rows,
    read_sequence,
    read_tile,
    read_ways,
    read_window,
    tokens_of,
)
from .triton_pool import BYTES


@triton.jit
def _zeros(COUNT: tl.constexpr, BD: tl.constexpr):
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (tl.zeros((BD,), tl.float32),)
    return rows


@triton.jit
def _start(p_xz, t0, grid, o_d, m_d, D: tl.constexpr, KS: tl.constexpr, U: tl.constexpr, BD: tl.constexpr):
    """What a program carries from tile to tile, of both directions: window, late gradients, sums over its tokens."""
    window = read_window(p_xz, t0, grid, o_d, m_d, 2 * D, KS, U, BD)  # (BD,) each
    return window, _zeros(KS - 1, BD), _zeros(2 * KS - 2, BD), _zeros(KS + 1, BD), _zeros(KS + 1, BD)


@triton.jit
def _convolve_again(
    state, p_xz, t0, grid, ways, o_d, m_d, D: tl.constexpr, KS: tl.constexpr, U: tl.constexpr, BD: tl.constexpr
):
    """The state with the next U rows, and the convolutions `z (U, BD)` of their tokens."""
    window, late_forth, late_back, sums_forth, sums_back = state
    window = extend_window(window, p_xz, t0, grid, o_d, m_d, 2 * D, KS, U, BD)
    z_forth, z_back = convolve(window, ways, KS, U, BD)
    return (window, late_forth, late_back, sums_forth, sums_back), z_forth, z_back


@triton.jit
def _token_gradients(late_forth, late_back, ways, KS: tl.constexpr, U: tl.constexpr, BD: tl.constexpr):
    """`dx[t] = sum_j forth taps[j] dz[t + KS - 1 - j] + back taps[j] dz[t - KS + 1 + j]` of U tokens, `(U, BD)`."""
    way_forth, way_back = ways
    rows = ()
    for i in tl.static_range(U):
        dx = tl.zeros((BD,), tl.float32)
        for j in tl.static_range(KS):
            dx = tl.fma(way_forth[j], late_forth[i + KS - 1 - j], dx)
            dx = tl.fma(way_back[j], late_back[i + j], dx)
        rows = rows + (dx,)
    return from_rows(rows, U, BD)


@triton.jit
def _add_taps(
    sums, dz, window, FIRST: tl.constexpr, SIGN: tl.constexpr, KS: tl.constexpr, U: tl.constexpr, BD: tl.constexpr
):
    """Add `dz (U, BD)` times the row that each tap read, and behind the taps dz itself, to `sums`.

    Tap j of token t reads row `t + FIRST + SIGN * j` of the window.
    """
    rows = to_rows(dz, U, BD)
    next_sums = ()
    for j in tl.static_range(KS):
        total = sums[j]
        for i in tl.static_range(U):
            total = tl.fma(rows[i], window[i + FIRST + SIGN * j], total)
        next_sums = next_sums + (total,)
    return next_sums + (sums[KS] + tl.sum(dz, axis=0),)


@triton.jit
def _convolve_bwd(
    state,
    du_forth,
    du_back,
    z_forth,
    z_back,
    p_dxz,
    t0,
    begin,
    end,
    grid,
    ways,
    o_d,
    m_d,
    D: tl.constexpr,
    KS: tl.constexpr,
    U: tl.constexpr,
    BD: tl.constexpr,
):
    """Write dx of U tokens, KS - 1 before t0; returns the next tile's state. Tokens outside the run have no sums here.

    dz = du * silu'(z);  dx: see `_token_gradients`;  dtaps: see `_add_taps`.
    """
    LATE: tl.constexpr = KS - 1
    window, late_forth, late_back, sums_forth, sums_back = state
    t = t0 + tl.arange(0, U)
    exists = ((t >= 0) & (t < tokens_of(grid)))[:, None]
    dz_forth = tl.where(exists, du_forth * silu_slope(z_forth), 0.0)
    dz_back = tl.where(exists, du_back * silu_slope(z_back), 0.0)
    late_forth = late_forth + to_rows(dz_forth, U, BD)
    late_back = late_back + to_rows(dz_back, U, BD)

    dx = _token_gradients(late_forth, late_back, ways, KS, U, BD)
    _, _, pixels = locate(t0 - LATE, grid, U)
    mask = ((t - LATE >= begin) & (t - LATE < end))[:, None] & m_d[None, :]
    tl.store(p_dxz + pixels[:, None] * (2 * D) + o_d[None, :], dx.to(p_dxz.dtype.element_ty), mask=mask)

    own = ((t >= begin) & (t < end))[:, None]
    sums_forth = _add_taps(sums_forth, tl.where(own, dz_forth, 0.0), window, 0, 1, KS, U, BD)
    sums_back = _add_taps(sums_back, tl.where(own, dz_back, 0.0), window, 2 * KS - 2, -1, KS, U, BD)
    late_forth = keep(late_forth, U, LATE)
    late_back = keep(late_back, U, 2 * LATE)
    return keep(window, U, 2 * KS - 2), late_forth, late_back, sums_forth, sums_back


@triton.jit
def _write_sums(state, p_dtaps, o_d, m_d, D: tl.constexpr, KS: tl.constexpr):
    """A program's sums to `dtaps (2, KS + 1, D)`."""
    _, _, _, sums_forth, sums_back = state
    for j in tl.static_range(KS + 1):
        tl.store(p_dtaps + j * D + o_d, sums_forth[j], mask=m_d)
        tl.store(p_dtaps + (KS + 1 + j) * D + o_d, sums_back[j], mask=m_d)


@triton.jit(do_not_specialize=GRID)
def _activate_bwd(
    p_dtokens,
    p_xz,
    p_ways,
    p_dxz,
    p_dtaps,
    lines,
    size,
    step,
    line_step,
    group,
    group_step,
    T,
    D: tl.constexpr,
    KS: tl.constexpr,
    BD: tl.constexpr,
    U: tl.constexpr,
):
    """The adjoint of `_activate_fwd`, `du = dtokens (B, L, 2, D)` as a sequence; a program takes T tokens.

    dx to the first half of `dxz (B, H, W, 2D)`, `dtaps (B, runs, 2, KS + 1, D)` with the bias last.
    """
    grid = grid_of(lines, size, step, line_step, group, group_step)
    L = tokens_of(grid)
    i_b, i_run, o_d, m_d = program_of_run(L, T, D, BD)
    p_dtokens += i_b * L * (2 * D)
    p_xz += i_b * L * (2 * D)
    p_dxz += i_b * L * (2 * D)
    ways = read_ways(p_ways, o_d, m_d, D, KS)  # (BD,) each
    begin = i_run * T
    end = tl.minimum(L, begin + T)
    first = begin - (KS - 1)
    state = _start(p_xz, first, grid, o_d, m_d, D, KS, U, BD)
    for t0 in range(first, end + KS - 1, U):
        state, z_forth, z_back = _convolve_again(state, p_xz, t0, grid, ways, o_d, m_d, D, KS, U, BD)
        du_forth = read_sequence(p_dtokens, t0, L, o_d, m_d, 2 * D, U)  # (U, BD)
        du_back = read_sequence(p_dtokens + D, t0, L, o_d, m_d, 2 * D, U)  # (U, BD)
        state = _convolve_bwd(
            state, du_forth, du_back, z_forth, z_back, p_dxz, t0, begin, end, grid, ways, o_d, m_d, D, KS, U, BD
        )
    p_dtaps += (i_b * tl.cdiv(L, T) + i_run) * (2 * (KS + 1) * D)
    _write_sums(state, p_dtaps, o_d, m_d, D, KS)


@triton.jit
def _spread(
    held,
    p_dshort,
    t0,
    first,
    scale,
    grid,
    o_d,
    m_d,
    D: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    U: tl.constexpr,
    BD: tl.constexpr,
):
    """The adjoint of a sum over lines: `scale * dshort` of a token's line, `(U, BD)` a direction.

    `held`: the last line's rows, read in an earlier tile. A run's first tile, at `first`, reads all of its lines.
    Of interleaved lines every token's is read.
    """
    forth, back = held
    du_forth = tl.zeros((U, BD), tl.float32)
    du_back = tl.zeros((U, BD), tl.float32)
    t = t0 + tl.arange(0, U)
    exists = (t >= 0) & (t < tokens_of(grid))
    if INTERLEAVED:
        rows = interleaved_line(t0, grid, U)
        du_forth = read_rows(p_dshort, rows, exists, o_d, m_d, 2 * D) * scale
        du_back = read_rows(p_dshort + D, rows, exists, o_d, m_d, 2 * D) * scale
    else:
        line, further, _ = locate(t0, grid, U)
        for i_line in range(line_of(tl.maximum(t0, 0), grid), lines_until(t0, tokens_of(grid), grid, U)):
            new = begins_in(i_line, t0, grid) | (t0 == first)
            new_forth, new_back = read_line(p_dshort, i_line, o_d, m_d & new, D)  # (BD,) each
            forth = tl.where(new, new_forth * scale, forth)
            back = tl.where(new, new_back * scale, back)
            mask = (exists & (further == i_line - line))[:, None]
            du_forth = tl.where(mask, forth[None, :], du_forth)
            du_back = tl.where(mask, back[None, :], du_back)
    return du_forth, du_back, (forth, back)


@triton.jit(do_not_specialize=GRID)
def _pool_bwd(
    p_dy,
    p_dshort,
    p_xz,
    p_ways,
    p_dxz,
    p_dtaps,
    lines,
    size,
    step,
    line_step,
    group,
    group_step,
    T,
    scale,
    D: tl.constexpr,
    KS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BD: tl.constexpr,
    U: tl.constexpr,
):
    """The adjoint of the skip and of a sum over lines, `du = skip * dy (B, H, W, D) + scale * dshort (B, lines, 2, D)`.

    The rest as in `_activate_bwd`.
    """
    grid = grid_of(lines, size, step, line_step, group, group_step)
    L = tokens_of(grid)
    i_b, i_run, o_d, m_d = program_of_run(L, T, D, BD)
    p_dy += i_b * L * D
    o_short = i_b * pooled_of(grid, INTERLEAVED) * (2 * D)
    p_dshort += o_short
    p_xz += i_b * L * (2 * D)
    p_dxz += i_b * L * (2 * D)
    ways = read_ways(p_ways, o_d, m_d, D, KS)  # (BD,) each
    begin = i_run * T
    end = tl.minimum(L, begin + T)
    first = begin - (KS - 1)
    state = _start(p_xz, first, grid, o_d, m_d, D, KS, U, BD)
    held = _zeros(2, BD)
    for t0 in range(first, end + KS - 1, U):
        state, z_forth, z_back = _convolve_again(state, p_xz, t0, grid, ways, o_d, m_d, D, KS, U, BD)
        du_forth, du_back, held = _spread(held, p_dshort, t0, first, scale, grid, o_d, m_d, D, INTERLEAVED, U, BD)
        dy = read_tile(p_dy, t0, L, grid, o_d, m_d, D, U)  # (U, BD)
        du_forth += dy * ways[0][KS + 1][None, :]
        du_back += dy * ways[1][KS + 1][None, :]
        state = _convolve_bwd(
            state, du_forth, du_back, z_forth, z_back, p_dxz, t0, begin, end, grid, ways, o_d, m_d, D, KS, U, BD
        )
    p_dtaps += (i_b * tl.cdiv(L, T) + i_run) * (2 * (KS + 1) * D)
    _write_sums(state, p_dtaps, o_d, m_d, D, KS)


@triton.jit
def _share_of_ties(u, p_dshort, p_largest, p_ties, rows, exists, scale, o_d, m_d, D: tl.constexpr):
    """`scale * dshort / ties` of the tokens `u (U, BD)` of one direction that are the largest of their lines `rows`."""
    largest = read_rows(p_largest, rows, exists, o_d, m_d, 2 * D)  # (U, BD)
    ties = read_rows(p_ties, rows, exists, o_d, m_d, 2 * D)  # (U, BD)
    share_of = read_rows(p_dshort, rows, exists, o_d, m_d, 2 * D) * scale / tl.where(ties > 0, ties, 1.0)
    return tl.where(u == largest, share_of, 0.0)


@triton.jit
def _spread_to_largest(
    held,
    u_forth,
    u_back,
    p_dshort,
    p_largest,
    p_ties,
    t0,
    first,
    scale,
    grid,
    o_d,
    m_d,
    D: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    U: tl.constexpr,
    BD: tl.constexpr,
):
    """The adjoint of a maximum: `scale * dshort / ties` where the token is its line's largest. See `_spread`."""
    forth, back, largest_forth, largest_back = held
    du_forth = tl.zeros((U, BD), tl.float32)
    du_back = tl.zeros((U, BD), tl.float32)
    t = t0 + tl.arange(0, U)
    exists = (t >= 0) & (t < tokens_of(grid))
    if INTERLEAVED:
        rows = interleaved_line(t0, grid, U)
        du_forth = _share_of_ties(u_forth, p_dshort, p_largest, p_ties, rows, exists, scale, o_d, m_d, D)
        du_back = _share_of_ties(u_back, p_dshort + D, p_largest + D, p_ties + D, rows, exists, scale, o_d, m_d, D)
    else:
        line, further, _ = locate(t0, grid, U)
        for i_line in range(line_of(tl.maximum(t0, 0), grid), lines_until(t0, tokens_of(grid), grid, U)):
            new = begins_in(i_line, t0, grid) | (t0 == first)
            m_new = m_d & new
            new_forth, new_back = read_line(p_dshort, i_line, o_d, m_new, D)  # (BD,) each
            ties_forth, ties_back = read_line(p_ties, i_line, o_d, m_new, D)  # (BD,) each
            most_forth, most_back = read_line(p_largest, i_line, o_d, m_new, D)  # (BD,) each
            forth = tl.where(new, new_forth * scale / tl.where(m_new, ties_forth, 1.0), forth)
            back = tl.where(new, new_back * scale / tl.where(m_new, ties_back, 1.0), back)
            largest_forth = tl.where(new, most_forth, largest_forth)
            largest_back = tl.where(new, most_back, largest_back)
            mask = (exists & (further == i_line - line))[:, None]
            du_forth = tl.where(mask & (u_forth == largest_forth[None, :]), forth[None, :], du_forth)
            du_back = tl.where(mask & (u_back == largest_back[None, :]), back[None, :], du_back)
    return du_forth, du_back, (forth, back, largest_forth, largest_back)


@triton.jit(do_not_specialize=GRID)
def _pool_max_bwd(
    p_dy,
    p_dshort,
    p_largest,
    p_ties,
    p_xz,
    p_ways,
    p_dxz,
    p_dtaps,
    lines,
    size,
    step,
    line_step,
    group,
    group_step,
    T,
    scale,
    D: tl.constexpr,
    KS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BD: tl.constexpr,
    U: tl.constexpr,
):
    """The adjoint of the skip and of a line's maximum, `du = skip * dy + (u == largest) * scale * dshort / ties`.

    `dshort`, `largest` and `ties` are `(B, lines, 2, D)`, u is `silu(conv(x) + bias)`. The rest as in `_pool_bwd`.
    """
    grid = grid_of(lines, size, step, line_step, group, group_step)
    L = tokens_of(grid)
    i_b, i_run, o_d, m_d = program_of_run(L, T, D, BD)
    p_dy += i_b * L * D
    o_short = i_b * pooled_of(grid, INTERLEAVED) * (2 * D)
    p_dshort += o_short
    p_largest += o_short
    p_ties += o_short
    p_xz += i_b * L * (2 * D)
    p_dxz += i_b * L * (2 * D)
    ways = read_ways(p_ways, o_d, m_d, D, KS)  # (BD,) each
    begin = i_run * T
    end = tl.minimum(L, begin + T)
    first = begin - (KS - 1)
    state = _start(p_xz, first, grid, o_d, m_d, D, KS, U, BD)
    held = _zeros(4, BD)
    for t0 in range(first, end + KS - 1, U):
        state, z_forth, z_back = _convolve_again(state, p_xz, t0, grid, ways, o_d, m_d, D, KS, U, BD)
        du_forth, du_back, held = _spread_to_largest(
            held,
            silu(z_forth),
            silu(z_back),
            p_dshort,
            p_largest,
            p_ties,
            t0,
            first,
            scale,
            grid,
            o_d,
            m_d,
            D,
            INTERLEAVED,
            U,
            BD,
        )
        dy = read_tile(p_dy, t0, L, grid, o_d, m_d, D, U)  # (U, BD)
        du_forth += dy * ways[0][KS + 1][None, :]
        du_back += dy * ways[1][KS + 1][None, :]
        state = _convolve_bwd(
            state, du_forth, du_back, z_forth, z_back, p_dxz, t0, begin, end, grid, ways, o_d, m_d, D, KS, U, BD
        )
    p_dtaps += (i_b * tl.cdiv(L, T) + i_run) * (2 * (KS + 1) * D)
    _write_sums(state, p_dtaps, o_d, m_d, D, KS)


def tiling(size: int, pool: str | None) -> dict:
    """As `triton_pool.tiling`. The maxima take registers: with more channels float16 would spill."""
    return dict(BD=32, U=BT) if size == 2 and pool == 'max' else dict(BD=BYTES // size, U=8)


class PoolingBack(NamedTuple):
    """The adjoint as sizes fix it: runs of all images, launches (None for no images), the first one's numbers."""

    runs: int
    launch: Launch | None
    collect: Launch
    numbers: dict[str, int]


KERNELS = {None: _activate_bwd, 'mean': _pool_bwd, 'max': _pool_max_bwd}


def pooling_back(xz_shape, element_size: int, lines: Lines, width: int, pool: str | None, device) -> PoolingBack:
    """How to launch `pool_bwd`; `width` is that of the convolutions."""
    batch, channels = xz_shape[0], xz_shape[-1] // 2
    tiles = tiling(element_size, pool)
    blocks = triton.cdiv(channels, tiles['BD'])
    part = max(share(lines.tokens, batch * blocks, device), min(lines.tokens, 8 * width))
    runs = batch * triton.cdiv(lines.tokens, part)
    kind = {} if pool is None else dict(INTERLEAVED=lines.interleaved)
    constants = dict(D=channels, KS=width, **kind, **tiles, num_warps=1, num_stages=1)
    launch = Launch(KERNELS[pool], runs * blocks, **constants) if batch else None
    return PoolingBack(runs, launch, collecting(2, channels, width, 1), lines.numbers(part))


def pool_bwd(dtokens, dshort, dxz, xz, ways, plan: PoolingBack, scale: float, maxima):
    """Fill the first half of `dxz` with the gradient of x.

    Args:
        dtokens: `(B, H, W, D)`, what reaches a token's skip; None where nothing is pooled.
        dshort: gradient of the short sequences, float32.
        dxz: to be filled.
        plan: made for it.
        xz, ways, scale: as in `pool_fwd`.
        maxima: of 'max', every line's and how many tokens have it, from `pool_ties`; else None.

    Returns:
        Gradients of the taps `(2, D, 1, KS)` and of the biases `(2, D)`, float32.
    """
    channels, width = xz.shape[-1] // 2, ways.shape[1] - 2
    dtaps, dbias = (xz.new_empty(shape, dtype=torch.float32) for shape in ((2, channels, 1, width), (2, channels)))
    if plan.launch is None:
        return dtaps.zero_(), dbias.zero_()
    partial = xz.new_empty((plan.runs, 2, width + 1, channels), dtype=torch.float32)
    shared = dict(p_xz=xz, p_ways=ways, p_dxz=dxz, p_dtaps=partial) | plan.numbers
    if dtokens is None:
        plan.launch.start(shared | dict(p_dtokens=dshort))
    elif maxima is None:
        plan.launch.start(shared | dict(p_dy=dtokens, p_dshort=dshort, scale=scale))
    else:
        largest, ties = maxima
        of_lines = dict(p_dshort=dshort, p_largest=largest, p_ties=ties)
        plan.launch.start(shared | of_lines | dict(p_dy=dtokens, scale=scale))
    plan.collect((partial, partial, dtaps, dbias, dtaps), plan.runs)
    return dtaps, dbias
