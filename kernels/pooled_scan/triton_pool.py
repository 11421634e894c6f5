"""From tokens to the short sequences and back: both convolutions, SiLU and pooling in one pass, and their adjoint."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..shared_triton.launch import Launch
from ..shared_triton.numerics import BT, from_rows, keep, share, silu, silu_slope, to_rows
from ..shared_triton.sums import collecting
from .triton_lines import (
    Lines,
    convolve,
    extend_window,
    locate,
    read_line,
    read_taps,
    read_tile,
    read_window,
    write_line,
)

BYTES = 128
"""Of a token that a program, one warp, works on: a line of the cache."""

POOLINGS = {None: 0, 'mean': 1, 'max': 2}
_NONE, _MEAN, _MAX = (tl.constexpr(value) for value in POOLINGS.values())


@triton.jit(do_not_specialize=['lines', 'size', 'step', 'line_step', 'T'])
def _pool(
    p_xz, p_weight_forth, p_bias_forth, p_weight_back, p_bias_back, p_short, p_largest, p_ties,
    lines, size, step, line_step, T, scale,
    D: tl.constexpr, KS: tl.constexpr, POOL: tl.constexpr, TIES: tl.constexpr, BD: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """T lines to `short (B, lines, 2, D)`, or where nothing is pooled to `(B, L, 2, D)`, pixel by pixel.

    TIES: also every line's maximum before scaling, and how many tokens have it; float32, shaped as `short`.
    """
    BLOCKS: tl.constexpr = tl.cdiv(D, BD)
    i = tl.program_id(0)
    o_d = (i % BLOCKS) * BD + tl.arange(0, BD)
    m_d = o_d < D
    runs = tl.cdiv(lines, T)
    i_run = i // BLOCKS % runs
    i_b = tl.cast(i // BLOCKS // runs, tl.int64)
    L = lines * size
    p_xz += i_b * L * (2 * D)
    o_short = i_b * (L if POOL == _NONE else lines) * (2 * D)
    p_short += o_short
    p_largest += o_short
    p_ties += o_short
    taps_forth = read_taps(p_weight_forth, p_bias_forth, o_d, m_d, KS)
    taps_back = read_taps(p_weight_back, p_bias_back, o_d, m_d, KS)
    begin = i_run * T * size
    end = tl.minimum(lines, (i_run + 1) * T) * size
    window = read_window(p_xz, begin, L, size, step, line_step, o_d, m_d, 2 * D, KS, U, BD)
    empty = tl.full((BD,), -float('inf') if POOL == _MAX else 0.0, tl.float32)
    forth = empty
    back = empty
    ties_forth = tl.zeros((BD,), tl.float32)
    ties_back = tl.zeros((BD,), tl.float32)
    o_t = tl.arange(0, U)
    for t0 in range(begin, end, U):
        window = extend_window(window, p_xz, t0, L, size, step, line_step, o_d, m_d, 2 * D, KS, U, BD)
        line, further, pixels = locate(t0, size, step, line_step, U)
        u_forth, u_back = convolve(window, taps_forth, taps_back, KS, U, BD)
        u_forth = silu(u_forth)
        u_back = silu(u_back)
        inside = t0 + o_t < end
        if POOL == _NONE:
            p = p_short + pixels[:, None] * (2 * D) + o_d[None, :]
            m = inside[:, None] & m_d[None, :]
            tl.store(p, u_forth, mask=m)
            tl.store(p + D, u_back, mask=m)
        else:
            for i_line in range(line, (tl.minimum(t0 + U, end) - 1) // size + 1):
                m = (inside & (further == i_line - line))[:, None]
                if POOL == _MEAN:
                    forth += tl.sum(tl.where(m, u_forth, 0.0), axis=0)
                    back += tl.sum(tl.where(m, u_back, 0.0), axis=0)
                else:
                    most_forth = tl.max(tl.where(m, u_forth, -float('inf')), axis=0)
                    most_back = tl.max(tl.where(m, u_back, -float('inf')), axis=0)
                    if TIES:
                        count = tl.sum(tl.where(m & (u_forth == most_forth[None, :]), 1.0, 0.0), axis=0)
                        ties_forth = tl.where(most_forth > forth, 0.0, ties_forth)
                        ties_forth += tl.where(most_forth >= forth, count, 0.0)
                        count = tl.sum(tl.where(m & (u_back == most_back[None, :]), 1.0, 0.0), axis=0)
                        ties_back = tl.where(most_back > back, 0.0, ties_back)
                        ties_back += tl.where(most_back >= back, count, 0.0)
                    forth = tl.maximum(forth, most_forth)
                    back = tl.maximum(back, most_back)
                complete = (i_line + 1) * size <= t0 + U
                m_line = m_d & complete
                write_line(p_short, i_line, o_d, m_line, forth * scale, back * scale, D)
                if TIES:
                    write_line(p_largest, i_line, o_d, m_line, forth, back, D)
                    write_line(p_ties, i_line, o_d, m_line, ties_forth, ties_back, D)
                forth = tl.where(complete, empty, forth)
                back = tl.where(complete, empty, back)
        window = keep(window, U, 2 * KS - 2)


@triton.jit(do_not_specialize=['lines', 'size', 'step', 'line_step', 'T'])
def _pool_back(
    p_dy, p_dshort, p_xz, p_weight_forth, p_bias_forth, p_skip_forth, p_weight_back, p_bias_back, p_skip_back,
    p_largest, p_ties, p_dxz, p_dtaps,
    lines, size, step, line_step, T, scale,
    D: tl.constexpr, KS: tl.constexpr, POOL: tl.constexpr, BD: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """T tokens: `dx` into the first half of `dxz (B, H, W, 2D)`, and `dtaps (B, runs, 2, KS + 1, D)`, the bias last.

    What reaches a token: `dy (B, H, W, D)` through the skip and `dshort (B, lines, 2, D)` through the pool, or where
    nothing is pooled all of it is `dshort (B, H, W, 2, D)`. The adjoint of a token's convolution reads behind it, that
    of the other direction before it: dx comes KS - 1 tokens late.
    """
    BLOCKS: tl.constexpr = tl.cdiv(D, BD)
    LATE: tl.constexpr = KS - 1
    i = tl.program_id(0)
    o_d = (i % BLOCKS) * BD + tl.arange(0, BD)
    m_d = o_d < D
    L = lines * size
    runs = tl.cdiv(L, T)
    i_run = i // BLOCKS % runs
    i_b = tl.cast(i // BLOCKS // runs, tl.int64)
    p_xz += i_b * L * (2 * D)
    p_dxz += i_b * L * (2 * D)
    p_dy += i_b * L * D
    o_short = i_b * (L if POOL == _NONE else lines) * (2 * D)
    p_dshort += o_short
    p_largest += o_short
    p_ties += o_short
    taps_forth = read_taps(p_weight_forth, p_bias_forth, o_d, m_d, KS)
    taps_back = read_taps(p_weight_back, p_bias_back, o_d, m_d, KS)
    zero = tl.zeros((BD,), tl.float32)
    begin = i_run * T
    end = tl.minimum(L, begin + T)
    late_forth = ()
    late_back = ()
    sums_forth = (zero,)
    sums_back = (zero,)
    for _j in tl.static_range(KS):
        sums_forth = sums_forth + (zero,)
        sums_back = sums_back + (zero,)
    for _j in tl.static_range(LATE):
        late_forth = late_forth + (zero,)
        late_back = late_back + (zero, zero)
    window = read_window(p_xz, begin - LATE, L, size, step, line_step, o_d, m_d, 2 * D, KS, U, BD)
    dshort_forth = zero
    dshort_back = zero
    largest_forth = zero
    largest_back = zero
    if POOL != _NONE:
        skip_forth = tl.load(p_skip_forth + o_d, mask=m_d, other=0.0).to(tl.float32)
        skip_back = tl.load(p_skip_back + o_d, mask=m_d, other=0.0).to(tl.float32)
    o_t = tl.arange(0, U)

    for t0 in range(begin - LATE, end + LATE, U):
        window = extend_window(window, p_xz, t0, L, size, step, line_step, o_d, m_d, 2 * D, KS, U, BD)
        line, further, pixels = locate(t0, size, step, line_step, U)
        t = t0 + o_t
        exists = (t >= 0) & (t < L)
        forth, back = convolve(window, taps_forth, taps_back, KS, U, BD)
        if POOL == _NONE:
            p = p_dshort + pixels[:, None] * (2 * D) + o_d[None, :]
            m = exists[:, None] & m_d[None, :]
            dforth = tl.load(p, mask=m, other=0.0).to(tl.float32)
            dback = tl.load(p + D, mask=m, other=0.0).to(tl.float32)
        else:
            dforth = tl.zeros((U, BD), tl.float32)
            dback = tl.zeros((U, BD), tl.float32)
            u_forth = silu(forth)
            u_back = silu(back)
            first = tl.maximum(t0, 0) // size
            for i_line in range(first, (tl.minimum(t0 + U, L) - 1) // size + 1):
                new = (i_line * size >= t0) | (t0 == begin - LATE)
                new_forth, new_back = read_line(p_dshort, i_line, o_d, m_d & new, D)
                new_forth *= scale
                new_back *= scale
                m = (exists & (further == i_line - line))[:, None]
                if POOL == _MAX:
                    ties_forth, ties_back = read_line(p_ties, i_line, o_d, m_d & new, D)
                    most_forth, most_back = read_line(p_largest, i_line, o_d, m_d & new, D)
                    new_forth = new_forth / tl.where(m_d & new, ties_forth, 1.0)
                    new_back = new_back / tl.where(m_d & new, ties_back, 1.0)
                    largest_forth = tl.where(new, most_forth, largest_forth)
                    largest_back = tl.where(new, most_back, largest_back)
                dshort_forth = tl.where(new, new_forth, dshort_forth)
                dshort_back = tl.where(new, new_back, dshort_back)
                if POOL == _MAX:
                    dforth = tl.where(m & (u_forth == largest_forth[None, :]), dshort_forth[None, :], dforth)
                    dback = tl.where(m & (u_back == largest_back[None, :]), dshort_back[None, :], dback)
                else:
                    dforth = tl.where(m, dshort_forth[None, :], dforth)
                    dback = tl.where(m, dshort_back[None, :], dback)
            dy = read_tile(p_dy, t0, L, size, step, line_step, o_d, m_d, D, U)
            dforth += dy * skip_forth[None, :]
            dback += dy * skip_back[None, :]
        dforth = tl.where(exists[:, None], dforth * silu_slope(forth), 0.0)
        dback = tl.where(exists[:, None], dback * silu_slope(back), 0.0)
        late_forth = late_forth + to_rows(dforth, U, BD)
        late_back = late_back + to_rows(dback, U, BD)

        rows = ()
        for i_t in tl.static_range(U):
            dx = zero
            for j in tl.static_range(KS):
                dx = tl.fma(taps_forth[j], late_forth[i_t + LATE - j], dx)
                dx = tl.fma(taps_back[j], late_back[i_t + j], dx)
            rows = rows + (dx,)
        _line, _further, pixels = locate(t0 - LATE, size, step, line_step, U)
        m = ((t - LATE >= begin) & (t - LATE < end))[:, None] & m_d[None, :]
        dx = from_rows(rows, U, BD).to(p_dxz.dtype.element_ty)
        tl.store(p_dxz + pixels[:, None] * (2 * D) + o_d[None, :], dx, mask=m)

        own = ((t >= begin) & (t < end))[:, None]
        dforth = tl.where(own, dforth, 0.0)
        dback = tl.where(own, dback, 0.0)
        rows_forth = to_rows(dforth, U, BD)
        rows_back = to_rows(dback, U, BD)
        next_forth = ()
        next_back = ()
        for j in tl.static_range(KS):
            sum_forth = sums_forth[j]
            sum_back = sums_back[j]
            for i_t in tl.static_range(U):
                sum_forth = tl.fma(rows_forth[i_t], window[i_t + j], sum_forth)
                sum_back = tl.fma(rows_back[i_t], window[i_t + 2 * KS - 2 - j], sum_back)
            next_forth = next_forth + (sum_forth,)
            next_back = next_back + (sum_back,)
        sums_forth = next_forth + (sums_forth[KS] + tl.sum(dforth, axis=0),)
        sums_back = next_back + (sums_back[KS] + tl.sum(dback, axis=0),)
        window = keep(window, U, 2 * KS - 2)
        late_forth = keep(late_forth, U, LATE)
        late_back = keep(late_back, U, 2 * LATE)

    p_dtaps += (i_b * runs + i_run) * (2 * (KS + 1) * D) + o_d
    for j in tl.static_range(KS + 1):
        tl.store(p_dtaps + j * D, sums_forth[j], mask=m_d)
        tl.store(p_dtaps + (KS + 1 + j) * D, sums_back[j], mask=m_d)


def tiling(size: int) -> dict:
    """Channels, elements of `size` bytes, of a program, and tokens of its tiles: as many as the registers hold."""
    return dict(BD=BYTES // size, U=BT)


def tiling_back(size: int, pool: str | None) -> dict:
    """As `tiling`, for the adjoint. The maxima take registers: with more channels float16 would spill."""
    return dict(BD=32, U=BT) if size == 2 and pool == 'max' else dict(BD=BYTES // size, U=8)


class Pooling(NamedTuple):
    """`_pool` as sizes fix it: shape of its result, lines of a program, the launch (None for no images)."""

    shape: tuple[int, int, int, int]
    part: int
    launch: Launch | None


def pooling(xz_shape, element_size: int, lines: Lines, width: int, pool: str | None, device) -> Pooling:
    """How to launch `_pool`; `width` is that of the convolutions."""
    batch, channels = xz_shape[0], xz_shape[3] // 2
    tiles = tiling(element_size)
    blocks = triton.cdiv(channels, tiles['BD'])
    part = share(lines.lines, batch * blocks, device)
    shape = (batch, lines.lines * lines.size if pool is None else lines.lines, 2, channels)
    if batch == 0:
        return Pooling(shape, part, None)
    constants = dict(D=channels, KS=width, POOL=POOLINGS[pool], **tiles, num_warps=1, num_stages=1)
    return Pooling(shape, part, Launch(_pool, batch * triton.cdiv(lines.lines, part) * blocks, TIES=False, **constants))


def with_ties(pooling: Pooling) -> Pooling:
    """The same, returning maxima and their numbers as well."""
    launch = pooling.launch
    if launch is None:
        return pooling
    return pooling._replace(launch=Launch(launch.kernel, launch.grid, **dict(launch.constants, TIES=True)))


def factor(lines: Lines, pool: str | None, scaling: float) -> float:
    """Of a line's sum or maximum."""
    return float(scaling / lines.size if pool == 'mean' else scaling)


def pool_lines(xz, plan: Pooling, lines: Lines, forth, back, scale: float, ties=False):
    """The short sequences of both directions.

    Args:
        xz: `(B, H, W, 2D)`, dense.
        plan: made for it; `with_ties` if so.
        lines: of the grid.
        forth, back: parameters, a `Direction` each.
        scale: what `factor` says.
        ties: return maxima and their numbers as well.

    Returns:
        `(B, lines, 2, D)` float32, or `(B, L, 2, D)` where nothing is pooled; maxima and numbers shaped alike, or None.
    """
    short = xz.new_empty(plan.shape, dtype=torch.float32)
    largest, count = (torch.empty_like(short), torch.empty_like(short)) if ties else (None, None)
    if plan.launch is not None:
        plan.launch(
            (
                *(xz, forth.conv_weight, forth.conv_bias, back.conv_weight, back.conv_bias),
                *(short, largest if ties else xz, count if ties else xz),
            ),
            *(*lines, plan.part, scale),
        )
    return short, largest, count


class PoolingBack(NamedTuple):
    """`_pool_back` as sizes fix it: runs of an image, tokens of a run, launches (None for no images)."""

    runs: int
    part: int
    launch: Launch | None
    collect: Launch


def pooling_back(xz_shape, element_size: int, lines: Lines, width: int, pool: str | None, device) -> PoolingBack:
    """How to launch `_pool_back`."""
    batch, channels = xz_shape[0], xz_shape[3] // 2
    tokens = lines.lines * lines.size
    tiles = tiling_back(element_size, pool)
    blocks = triton.cdiv(channels, tiles['BD'])
    part = max(share(tokens, batch * blocks, device), min(tokens, 8 * width))
    runs = triton.cdiv(tokens, part)
    constants = dict(D=channels, KS=width, POOL=POOLINGS[pool], **tiles, num_warps=1, num_stages=1)
    launch = Launch(_pool_back, batch * runs * blocks, **constants) if batch else None
    return PoolingBack(runs, part, launch, collecting(2, channels, width, 1))


def pool_backward(dy, dshort, dxz, xz, plan: PoolingBack, lines: Lines, forth, back, scale: float, largest, ties):
    """Adjoint of `pool_lines` and of the skip: fill the first half of `dxz`.

    Args:
        dy: `(B, H, W, D)`, what reaches a token's skip; not read where nothing is pooled.
        dshort: gradient of the short sequences, float32.
        dxz: to be filled.
        plan: made for it.
        xz, lines, forth, back, scale: as in `pool_lines`.
        largest, ties: from `pool_lines`, or None.

    Returns:
        Gradients of the taps `(2, D, 1, KS)` and of the biases `(2, D)`, float32.
    """
    batch, channels = xz.shape[0], xz.shape[3] // 2
    width = forth.conv_weight.shape[2]
    dtaps, dbias = (xz.new_empty(shape, dtype=torch.float32) for shape in ((2, channels, 1, width), (2, channels)))
    if plan.launch is None:
        return dtaps.zero_(), dbias.zero_()
    partial = xz.new_empty((batch * plan.runs, 2, width + 1, channels), dtype=torch.float32)
    plan.launch(
        (
            *(dy, dshort, xz, forth.conv_weight, forth.conv_bias, forth.Ds, back.conv_weight, back.conv_bias, back.Ds),
            *(dshort if largest is None else largest, dshort if ties is None else ties, dxz, partial),
        ),
        *(*lines, plan.part, scale),
    )
    plan.collect((partial, partial, dtaps, dbias, dtaps), batch * plan.runs)
    return dtaps, dbias
