"""From tokens to the short sequences: both convolutions, SiLU and pooling in one pass."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..shared_triton.launch import Launch
from ..shared_triton.numerics import BT, keep, share
from ..shared_triton.runs import program_of_run
from .triton_lines import (
    GRID,
    Lines,
    activate,
    ends_in,
    gather,
    grid_of,
    item_of,
    items_of,
    lines_until,
    locate,
    pooled_of,
    read_ways,
    read_window,
    run_of_lines,
    tokens_of,
    write_line,
    write_lines,
)

BYTES = 128
"""Of a token that a program, one warp, works on: a line of the cache."""

PLANES = 8
"""Most interleaved lines of a program's tile: their sums and what convolutions reach stay in registers."""


@triton.jit(do_not_specialize=GRID)
def _activate_fwd(
    p_xz,
    p_ways,
    p_tokens,
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
    """`tokens (B, L, 2, D) = silu(conv(x) + bias)`, where nothing is pooled, as a sequence; a program takes T lines."""
    grid = grid_of(lines, size, step, line_step, group, group_step)
    i_b, i_run, o_d, m_d = program_of_run(lines, T, D, BD)
    L = tokens_of(grid)
    p_xz += i_b * L * (2 * D)
    p_tokens += i_b * L * (2 * D)
    ways = read_ways(p_ways, o_d, m_d, D, KS)  # (BD,) each
    begin, end = run_of_lines(i_run, T, grid)
    window = read_window(p_xz, begin, grid, o_d, m_d, 2 * D, KS, U, BD)  # (BD,) each
    for t0 in range(begin, end, U):
        window, u_forth, u_back = activate(window, p_xz, t0, grid, ways, o_d, m_d, D, KS, U, BD)
        window = keep(window, U, 2 * KS - 2)
        t = t0 + tl.arange(0, U)
        p_token = p_tokens + t.to(tl.int64)[:, None] * (2 * D) + o_d[None, :]
        mask = (t < end)[:, None] & m_d[None, :]
        tl.store(p_token, u_forth, mask=mask)
        tl.store(p_token + D, u_back, mask=mask)


@triton.jit(do_not_specialize=GRID)
def _pool_fwd(
    p_xz,
    p_ways,
    p_short,
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
    MAX: tl.constexpr,
    BD: tl.constexpr,
    U: tl.constexpr,
):
    """`short (B, lines, 2, D) = scale * sum (or with MAX max) over a line of silu(conv(x) + bias)`; T lines."""
    grid = grid_of(lines, size, step, line_step, group, group_step)
    i_b, i_run, o_d, m_d = program_of_run(lines, T, D, BD)
    p_xz += i_b * tokens_of(grid) * (2 * D)
    p_short += i_b * lines * (2 * D)
    ways = read_ways(p_ways, o_d, m_d, D, KS)  # (BD,) each
    begin, end = run_of_lines(i_run, T, grid)
    window = read_window(p_xz, begin, grid, o_d, m_d, 2 * D, KS, U, BD)  # (BD,) each
    empty = tl.full((BD,), -float('inf') if MAX else 0.0, tl.float32)
    forth = empty
    back = empty
    for t0 in range(begin, end, U):
        window, u_forth, u_back = activate(window, p_xz, t0, grid, ways, o_d, m_d, D, KS, U, BD)
        line, further, _ = locate(t0, grid, U)
        inside = t0 + tl.arange(0, U) < end
        for i_line in range(line, lines_until(t0, end, grid, U)):
            mask = (inside & (further == i_line - line))[:, None]
            forth = gather(forth, u_forth, mask, MAX)
            back = gather(back, u_back, mask, MAX)
            complete = ends_in(i_line, t0, grid, U)
            write_line(p_short, i_line, o_d, m_d & complete, forth * scale, back * scale, D)
            forth = tl.where(complete, empty, forth)
            back = tl.where(complete, empty, back)
        window = keep(window, U, 2 * KS - 2)


@triton.jit
def _count_ties(largest, ties, tile, mask):
    """The maximum of `largest (BD,)` and the rows of a tile in a mask, and how many have it: `ties` had `largest`."""
    most = tl.max(tl.where(mask, tile, -float('inf')), axis=0)
    count = tl.sum(tl.where(mask & (tile == most[None, :]), 1.0, 0.0), axis=0)
    ties = tl.where(most > largest, 0.0, ties) + tl.where(most >= largest, count, 0.0)
    return tl.maximum(largest, most), ties


@triton.jit(do_not_specialize=GRID)
def _pool_max_fwd(
    p_xz,
    p_ways,
    p_short,
    p_largest,
    p_ties,
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
    BD: tl.constexpr,
    U: tl.constexpr,
):
    """What the adjoint of a maximum needs, each `(B, lines, 2, D)`; a program takes T lines.

    largest = max over a line of silu(conv(x) + bias), ties = how many of its tokens have it, short = scale * largest.
    """
    grid = grid_of(lines, size, step, line_step, group, group_step)
    i_b, i_run, o_d, m_d = program_of_run(lines, T, D, BD)
    p_xz += i_b * tokens_of(grid) * (2 * D)
    o_short = i_b * lines * (2 * D)
    ways = read_ways(p_ways, o_d, m_d, D, KS)  # (BD,) each
    begin, end = run_of_lines(i_run, T, grid)
    window = read_window(p_xz, begin, grid, o_d, m_d, 2 * D, KS, U, BD)  # (BD,) each
    empty = tl.full((BD,), -float('inf'), tl.float32)
    forth = empty
    back = empty
    ties_forth = tl.zeros((BD,), tl.float32)
    ties_back = tl.zeros((BD,), tl.float32)
    for t0 in range(begin, end, U):
        window, u_forth, u_back = activate(window, p_xz, t0, grid, ways, o_d, m_d, D, KS, U, BD)
        line, further, _ = locate(t0, grid, U)
        inside = t0 + tl.arange(0, U) < end
        for i_line in range(line, lines_until(t0, end, grid, U)):
            mask = (inside & (further == i_line - line))[:, None]
            forth, ties_forth = _count_ties(forth, ties_forth, u_forth, mask)
            back, ties_back = _count_ties(back, ties_back, u_back, mask)
            complete = ends_in(i_line, t0, grid, U)
            m_line = m_d & complete
            write_line(p_short + o_short, i_line, o_d, m_line, forth * scale, back * scale, D)
            write_line(p_largest + o_short, i_line, o_d, m_line, forth, back, D)
            write_line(p_ties + o_short, i_line, o_d, m_line, ties_forth, ties_back, D)
            forth = tl.where(complete, empty, forth)
            back = tl.where(complete, empty, back)
        window = keep(window, U, 2 * KS - 2)


@triton.jit(do_not_specialize=GRID)
def _pool_planes_fwd(
    p_xz,
    p_ways,
    p_short,
    p_largest,
    p_ties,
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
    MAX: tl.constexpr,
    BD: tl.constexpr,
    U: tl.constexpr,
):
    """As `_pool_fwd` of interleaved lines or, where there are `largest` and `ties` to write, as `_pool_max_fwd`.

    U lines are walked together, a token of each at a time: sums and maxima need no token of another row of the tile.
    A program takes T pieces of groups.
    """
    grid = grid_of(lines, size, step, line_step, group, group_step)
    count = items_of(grid, U)
    i_b, i_run, o_d, m_d = program_of_run(count, T, D, BD)
    p_xz += i_b * tokens_of(grid) * (2 * D)
    o_short = i_b * pooled_of(grid, True) * (2 * D)
    ways = read_ways(p_ways, o_d, m_d, D, KS)  # (BD,) each
    for item in range(i_run * T, tl.minimum(count, (i_run + 1) * T)):
        begin, line, left = item_of(item, grid, U)
        forth = tl.full((U, BD), -float('inf') if MAX else 0.0, tl.float32)
        back = forth
        ties_forth = tl.zeros((U, BD), tl.float32)
        ties_back = ties_forth
        for t0 in range(begin, begin + group * size, size):
            window = read_window(p_xz, t0, grid, o_d, m_d, 2 * D, KS, U, BD)  # (BD,) each
            _, u_forth, u_back = activate(window, p_xz, t0, grid, ways, o_d, m_d, D, KS, U, BD)
            if p_ties is not None:
                ties_forth = _count_tie(forth, ties_forth, u_forth)
                ties_back = _count_tie(back, ties_back, u_back)
            forth = tl.maximum(forth, u_forth) if MAX else forth + u_forth
            back = tl.maximum(back, u_back) if MAX else back + u_back
        write_lines(p_short + o_short, line, left, o_d, m_d, forth * scale, back * scale, D, U)
        if p_ties is not None:
            write_lines(p_largest + o_short, line, left, o_d, m_d, forth, back, D, U)
            write_lines(p_ties + o_short, line, left, o_d, m_d, ties_forth, ties_back, D, U)


@triton.jit
def _count_tie(largest, ties, u):
    """How many tokens have the maximum of `largest` and `u`, of which `ties` had `largest`; one token u each."""
    return tl.where(u > largest, 1.0, ties + tl.where(u == largest, 1.0, 0.0))


def tiling(size: int) -> dict:
    """Channels, elements of `size` bytes, of a program, and tokens of its tiles: as many as the registers hold."""
    return dict(BD=BYTES // size, U=BT)


def tile_of_planes(lines: Lines) -> int:
    """Interleaved lines of a program's tile: no more than a group has, but for a power of two."""
    return min(PLANES, triton.next_power_of_2(lines.size))


class Pooling(NamedTuple):
    """A pass over the tokens as sizes fix it: shape of its results, launch (None for no images) and its numbers."""

    shape: tuple[int, int, int, int]
    launch: Launch | None
    numbers: dict[str, int | None]


def pooling(xz_shape, element_size: int, lines: Lines, width: int, pool: str | None, device, ties=False) -> Pooling:
    """How to launch `pool_fwd`, or with `ties` `pool_ties`; `width` is that of the convolutions."""
    batch, channels = xz_shape[0], xz_shape[-1] // 2
    tiles, count, absent = tiling(element_size), lines.lines, {}
    if lines.interleaved:
        tiles['U'] = tile_of_planes(lines)
        count = lines.items(tiles['U'])
    blocks = triton.cdiv(channels, tiles['BD'])
    part = share(count, batch * blocks, device)
    shape = (batch, lines.tokens if pool is None else lines.pooled[0], 2, channels)
    if batch == 0:
        return Pooling(shape, None, {})
    if lines.interleaved:
        kernel, kind = _pool_planes_fwd, dict(MAX=pool == 'max')
        absent = {} if ties else dict(p_largest=None, p_ties=None)
    else:
        kernel = _activate_fwd if pool is None else _pool_max_fwd if ties else _pool_fwd
        kind = dict(MAX=pool == 'max') if kernel is _pool_fwd else {}
    grid = batch * triton.cdiv(count, part) * blocks
    launch = Launch(kernel, grid, D=channels, KS=width, **kind, **tiles, num_warps=1, num_stages=1)
    return Pooling(shape, launch, lines.numbers(part) | absent)


def factor(lines: Lines, pool: str | None, scaling: float) -> float:
    """Of a line's sum or maximum."""
    return float(scaling / lines.pooled[1] if pool == 'mean' else scaling)


def pool_fwd(xz, ways, plan: Pooling, pool: str | None, scale: float) -> torch.Tensor:
    """The short sequences of both directions.

    Args:
        xz: `(B, H, W, 2D)` or `(B, H, W, K, 2D)`, dense.
        ways: parameters of both directions, `(2, KS + 2, D)`.
        plan: made for it.
        pool: what lines become: 'mean', 'max' or, unpooled, None.
        scale: what `factor` says.

    Returns:
        `(B, lines, 2, D)` float32, or `(B, L, 2, D)` where nothing is pooled.
    """
    short = xz.new_empty(plan.shape, dtype=torch.float32)
    if plan.launch is None:
        pass
    elif pool is None:
        plan.launch.start(dict(p_xz=xz, p_ways=ways, p_tokens=short) | plan.numbers)
    else:
        plan.launch.start(dict(p_xz=xz, p_ways=ways, p_short=short, scale=scale) | plan.numbers)
    return short


def pool_ties(xz, ways, plan: Pooling, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What 'max' gives, every line's maximum before scaling, and how many of its tokens have it; as in `pool_fwd`."""
    short, largest, ties = (xz.new_empty(plan.shape, dtype=torch.float32) for _ in range(3))
    if plan.launch is not None:
        outputs = dict(p_short=short, p_largest=largest, p_ties=ties)
        plan.launch.start(dict(p_xz=xz, p_ways=ways, scale=scale) | outputs | plan.numbers)
    return short, largest, ties
