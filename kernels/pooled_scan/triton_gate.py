"""From the short sequences back to the tokens: expansion, skip, mean of both directions, layer normalisation, gate.

The normalisation needs all channels of a token in one program: several tiles of channels, so that 3 * 2^k channels
leave no lane idle. Its adjoint needs four numbers a token from all channels, the moments, which a pass of its own
finds; `triton_gate_bwd` shares the channels of the rest out among programs like the convolutions do.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..shared_triton.launch import Launch
from ..shared_triton.numerics import is_cuda, keep, launch_options, multiprocessors, silu
from .triton_lines import (
    GRID,
    Lines,
    activate,
    begins_in,
    grid_of,
    interleaved_line,
    line_of,
    lines_until,
    locate,
    next_line,
    pooled_of,
    read_line,
    read_rows,
    read_tile,
    read_ways,
    read_window,
    tokens_of,
)

TILES = 5
"""Most tiles of channels of a program that holds them all."""

U = 4
"""Tokens of such a program's tiles."""

SHORTEST_RUN, LONGEST_RUN = 32, 512
"""Tokens of such a program: shorter runs would read more weights than tokens."""


@triton.jit
def read_halved_ways(p_ways, o_d, m_d, D: tl.constexpr, KS: tl.constexpr):
    """`read_ways` with half the skips, whose mean over both directions is then a sum."""
    forth, back = read_ways(p_ways, o_d, m_d, D, KS)
    return keep(forth, 0, KS + 1) + (0.5 * forth[KS + 1],), keep(back, 0, KS + 1) + (0.5 * back[KS + 1],)


@triton.jit
def read_mean(p_scanned, line, o_d, mask, D: tl.constexpr):
    """Mean `(BD,)` of what both directions give a line."""
    forth, back = read_line(p_scanned, line, o_d, mask, D)  # (BD,) each
    return 0.5 * (forth + back)


@triton.jit
def read_mean_rows(p_scanned, rows, mask, o_d, m_d, D: tl.constexpr):
    """Mean `(U, BD)` of what both directions give lines or tokens of `(L, 2, D)`, zero where a mask says so."""
    forth = read_rows(p_scanned, rows, mask, o_d, m_d, 2 * D)  # (U, BD)
    return 0.5 * (forth + read_rows(p_scanned + D, rows, mask, o_d, m_d, 2 * D))  # (U, BD)


@triton.jit
def read_mean_tile(p_scanned, t0, end, o_d, m_d, D: tl.constexpr, U: tl.constexpr):
    """`read_mean_rows` of the tokens t0 to t0 + U - 1, in the order of the sequence."""
    t = t0 + tl.arange(0, U)
    return read_mean_rows(p_scanned, t.to(tl.int64), t < end, o_d, m_d, D)


@triton.jit
def read_norm(p_weight, p_bias, o_d, m_d):
    """Weight and bias `(BD,)` of the norm."""
    weight = tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)  # (BD,)
    return weight, tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)  # (BD,)


@triton.jit
def expand(
    held,
    u_forth,
    u_back,
    ways,
    p_scanned,
    t0,
    end,
    grid,
    o_d,
    m_d,
    D: tl.constexpr,
    KS: tl.constexpr,
    U: tl.constexpr,
    LINES: tl.constexpr,
):
    """Mean over both directions of `scanned[line of the token] + skip * u` at U tokens, `(U, BD)`; ways: halved.

    `held (BD,)`: what the last token's line gives, read in an earlier tile; returned for the next one.
    LINES: 'long' ones are as long as a tile, so that at most one begins in it; 'short', or 'interleaved'.
    """
    way_forth, way_back = ways
    line, further, _ = locate(t0, grid, U)
    y = way_forth[KS + 1][None, :] * u_forth + way_back[KS + 1][None, :] * u_back
    if LINES == 'interleaved':
        exists = t0 + tl.arange(0, U) < end
        y += read_mean_rows(p_scanned, interleaved_line(t0, grid, U), exists, o_d, m_d, D)
    elif LINES == 'long':
        i_line, begins, exists, at_once = next_line(line, t0, end, grid, U)
        mean = read_mean(p_scanned, i_line, o_d, m_d & begins & exists, D)  # (BD,)
        y += tl.where(((further > 0) | at_once)[:, None], mean[None, :], held[None, :])
        held = tl.where(begins, mean, held)
    else:
        for i_line in range(line, lines_until(t0, end, grid, U)):
            new = begins_in(i_line, t0, grid)
            held = tl.where(new, read_mean(p_scanned, i_line, o_d, m_d & new, D), held)
            y += tl.where((further == i_line - line)[:, None], held[None, :], 0.0)
    return y, held


@triton.jit
def _program(L, T):
    """This program's image, and the first and end of its run of T tokens of L."""
    runs = tl.cdiv(L, T)
    begin = tl.program_id(0) % runs * T
    return tl.cast(tl.program_id(0) // runs, tl.int64), begin, tl.minimum(L, begin + T)


@triton.jit
def _channels(D: tl.constexpr, TILES: tl.constexpr, BD: tl.constexpr):
    """The channels of every tile of them, and their masks."""
    o_d = ()
    m_d = ()
    for c in tl.static_range(TILES):
        o = c * BD + tl.arange(0, BD)
        o_d = o_d + (o,)
        m_d = m_d + ((o < D) | (D == TILES * BD),)
    return o_d, m_d


@triton.jit
def _open_ways(p_ways, o_d, m_d, D: tl.constexpr, KS: tl.constexpr, TILES: tl.constexpr, KEEP: tl.constexpr):
    """What `_ways_of` takes: every tile's parameters or, without KEEP, where they are read when they are needed."""
    kept = ()
    if KEEP:
        for c in tl.static_range(TILES):
            kept = kept + (read_halved_ways(p_ways, o_d[c], m_d[c], D, KS),)
    return p_ways, kept


@triton.jit
def _ways_of(ways, c: tl.constexpr, o_d, m_d, D: tl.constexpr, KS: tl.constexpr, KEEP: tl.constexpr):
    """Both directions' parameters of tile c, halved skips, `(BD,)` each."""
    p_ways, kept = ways
    return kept[c] if KEEP else read_halved_ways(p_ways, o_d[c], m_d[c], D, KS)


@triton.jit
def _open_norm(p_weight, p_bias, o_d, m_d, TILES: tl.constexpr, KEEP: tl.constexpr):
    """As `_open_ways`, for `_norm_of`; nothing where there is no norm: Triton 3.6 cannot return None in a tuple."""
    norm = ()
    if p_weight is not None:
        kept = ()
        if KEEP:
            for c in tl.static_range(TILES):
                kept = kept + (read_norm(p_weight, p_bias, o_d[c], m_d[c]),)
        norm = (p_weight, p_bias, kept)
    return norm


@triton.jit
def _norm_of(norm, c: tl.constexpr, o_d, m_d, KEEP: tl.constexpr):
    """Weight and bias of tile c, `(BD,)` each."""
    p_weight, p_bias, kept = norm
    return kept[c] if KEEP else read_norm(p_weight, p_bias, o_d[c], m_d[c])


@triton.jit
def _start(
    p_xz,
    p_scanned,
    begin,
    grid,
    o_d,
    m_d,
    D: tl.constexpr,
    KS: tl.constexpr,
    LINES: tl.constexpr,
    TILES: tl.constexpr,
    U: tl.constexpr,
    BD: tl.constexpr,
):
    """What a program carries from tokens to tokens: every tile's window, and what the last token's line gives it."""
    windows = ()
    held = ()
    for c in tl.static_range(TILES):
        windows = windows + read_window(p_xz, begin, grid, o_d[c], m_d[c], 2 * D, KS, U, BD)  # (BD,) each
        if LINES == 'interleaved':
            held = held + (tl.zeros((BD,), tl.float32),)
        else:
            held = held + (read_mean(p_scanned, line_of(begin, grid), o_d[c], m_d[c], D),)  # (BD,)
    return windows, held


@triton.jit
def _expand_all(
    state,
    ways,
    p_xz,
    p_scanned,
    t0,
    end,
    grid,
    o_d,
    m_d,
    D: tl.constexpr,
    KS: tl.constexpr,
    LINES: tl.constexpr,
    TILES: tl.constexpr,
    KEEP: tl.constexpr,
    U: tl.constexpr,
    BD: tl.constexpr,
):
    """`expand` of every tile of channels from its own convolutions, and the next tokens' state."""
    WINDOW: tl.constexpr = 2 * KS - 2
    windows, held = state
    tiles = ()
    next_windows = ()
    next_held = ()
    for c in tl.static_range(TILES):
        way = _ways_of(ways, c, o_d, m_d, D, KS, KEEP)  # (BD,) each
        window, u_forth, u_back = activate(
            keep(windows, c * WINDOW, WINDOW), p_xz, t0, grid, way, o_d[c], m_d[c], D, KS, U, BD
        )
        tile, line = expand(held[c], u_forth, u_back, way, p_scanned, t0, end, grid, o_d[c], m_d[c], D, KS, U, LINES)
        tiles = tiles + (tile,)
        next_windows = next_windows + keep(window, U, WINDOW)
        next_held = next_held + (line,)
    return tiles, (next_windows, next_held)


@triton.jit
def _read_all(p_scanned, t0, end, o_d, m_d, D: tl.constexpr, TILES: tl.constexpr, U: tl.constexpr):
    """`read_mean_tile` of every tile of channels."""
    tiles = ()
    for c in tl.static_range(TILES):
        tiles = tiles + (read_mean_tile(p_scanned, t0, end, o_d[c], m_d[c], D, U),)  # (U, BD)
    return tiles


@triton.jit
def _normalise(tiles, m_d, eps, D: tl.constexpr, TILES: tl.constexpr, U: tl.constexpr, BD: tl.constexpr):
    """`(tile - mean) / sqrt(variance + eps)` over all channels; also mean and inverse deviation of the U tokens.

    Tiles are added before lanes exchange anything.
    """
    total = tl.zeros((U, BD), tl.float32)
    for c in tl.static_range(TILES):
        total += tl.where(m_d[c][None, :], tiles[c], 0.0)
    mean = tl.sum(total, axis=1) / D
    squares = tl.zeros((U, BD), tl.float32)
    centred = ()
    for c in tl.static_range(TILES):
        tile = tl.where(m_d[c][None, :], tiles[c] - mean[:, None], 0.0)
        centred = centred + (tile,)
        squares += tile * tile
    scale = 1.0 / tl.sqrt(tl.sum(squares, axis=1) / D + eps)
    normed = ()
    for c in tl.static_range(TILES):
        normed = normed + (centred[c] * scale[:, None],)
    return normed, mean, scale


@triton.jit
def _write_gated(
    tiles,
    norm,
    p_xz,
    p_y,
    t0,
    end,
    grid,
    o_d,
    m_d,
    eps,
    D: tl.constexpr,
    TILES: tl.constexpr,
    KEEP: tl.constexpr,
    U: tl.constexpr,
    BD: tl.constexpr,
):
    """`y = (weight * normalised tile + bias) * silu(z)`, without a norm `tile * silu(z)`."""
    if len(norm) > 0:
        tiles, _mean, _scale = _normalise(tiles, m_d, eps, D, TILES, U, BD)
    _, _, pixels = locate(t0, grid, U)
    m_t = t0 + tl.arange(0, U) < end
    for c in tl.static_range(TILES):
        z = read_tile(p_xz + D, t0, end, grid, o_d[c], m_d[c], 2 * D, U)  # (U, BD)
        tile = tiles[c]
        if len(norm) > 0:
            weight, bias = _norm_of(norm, c, o_d, m_d, KEEP)  # (BD,) each
            tile = tile * weight[None, :] + bias[None, :]
        y = (tile * silu(z)).to(p_y.dtype.element_ty)
        tl.store(p_y + pixels[:, None] * D + o_d[c][None, :], y, mask=m_t[:, None] & m_d[c][None, :])


@triton.jit
def _write_moments(
    tiles,
    norm,
    p_xz,
    p_dy,
    p_moments,
    t0,
    end,
    grid,
    o_d,
    m_d,
    eps,
    D: tl.constexpr,
    TILES: tl.constexpr,
    KEEP: tl.constexpr,
    U: tl.constexpr,
    BD: tl.constexpr,
):
    """`moments (L, 4)` of U tokens: mean, inverse deviation, and over channels the means of dn and of dn * normed.

    dn = dy * silu(z) * weight, the gradient of the normalised value.
    """
    normed, mean, scale = _normalise(tiles, m_d, eps, D, TILES, U, BD)
    slopes = tl.zeros((U, BD), tl.float32)
    products = tl.zeros((U, BD), tl.float32)
    for c in tl.static_range(TILES):
        z = read_tile(p_xz + D, t0, end, grid, o_d[c], m_d[c], 2 * D, U)  # (U, BD)
        weight, _ = _norm_of(norm, c, o_d, m_d, KEEP)  # (BD,)
        dy = read_tile(p_dy, t0, end, grid, o_d[c], m_d[c], D, U)  # (U, BD)
        dn = dy * silu(z) * weight[None, :]
        slopes += dn
        products += dn * normed[c]
    _, _, pixels = locate(t0, grid, U)
    p_moment = p_moments + pixels * 4
    mask = t0 + tl.arange(0, U) < end
    tl.store(p_moment, mean, mask=mask)
    tl.store(p_moment + 1, scale, mask=mask)
    tl.store(p_moment + 2, tl.sum(slopes, axis=1) / D, mask=mask)
    tl.store(p_moment + 3, tl.sum(products, axis=1) / D, mask=mask)


@triton.jit(do_not_specialize=GRID)
def _gate_fwd(
    p_xz,
    p_scanned,
    p_ways,
    p_norm_weight,
    p_norm_bias,
    p_y,
    lines,
    size,
    step,
    line_step,
    group,
    group_step,
    T,
    eps,
    D: tl.constexpr,
    KS: tl.constexpr,
    LINES: tl.constexpr,
    TILES: tl.constexpr,
    KEEP: tl.constexpr,
    BD: tl.constexpr,
    U: tl.constexpr,
):
    """T tokens of `y (B, H, W, D) = norm(mean over directions of scanned[line] + skip * u) * silu(z)`.

    `u = silu(conv(x) + bias)` is found again; `scanned (B, lines, 2, D)`; without a norm its pointers are None.
    KEEP: keep the parameters in registers rather than read them for every tile.
    """
    grid = grid_of(lines, size, step, line_step, group, group_step)
    L = tokens_of(grid)
    i_b, begin, end = _program(L, T)
    p_xz += i_b * L * (2 * D)
    p_scanned += i_b * pooled_of(grid, LINES == 'interleaved') * (2 * D)
    p_y += i_b * L * D
    o_d, m_d = _channels(D, TILES, BD)
    norm = _open_norm(p_norm_weight, p_norm_bias, o_d, m_d, TILES, KEEP)
    ways = _open_ways(p_ways, o_d, m_d, D, KS, TILES, KEEP)
    state = _start(p_xz, p_scanned, begin, grid, o_d, m_d, D, KS, LINES, TILES, U, BD)
    for t0 in range(begin, end, U):
        tiles, state = _expand_all(
            state, ways, p_xz, p_scanned, t0, end, grid, o_d, m_d, D, KS, LINES, TILES, KEEP, U, BD
        )
        _write_gated(tiles, norm, p_xz, p_y, t0, end, grid, o_d, m_d, eps, D, TILES, KEEP, U, BD)


@triton.jit(do_not_specialize=GRID)
def _gate_tokens_fwd(
    p_xz,
    p_scanned,
    p_norm_weight,
    p_norm_bias,
    p_y,
    lines,
    size,
    step,
    line_step,
    group,
    group_step,
    T,
    eps,
    D: tl.constexpr,
    TILES: tl.constexpr,
    KEEP: tl.constexpr,
    BD: tl.constexpr,
    U: tl.constexpr,
):
    """T tokens of `y (B, H, W, D) = norm(mean over directions of scanned) * silu(z)`, where nothing is pooled.

    `scanned (B, L, 2, D)` as a sequence, skip included. The rest as in `_gate_fwd`.
    """
    grid = grid_of(lines, size, step, line_step, group, group_step)
    L = tokens_of(grid)
    i_b, begin, end = _program(L, T)
    p_xz += i_b * L * (2 * D)
    p_scanned += i_b * L * (2 * D)
    p_y += i_b * L * D
    o_d, m_d = _channels(D, TILES, BD)
    norm = _open_norm(p_norm_weight, p_norm_bias, o_d, m_d, TILES, KEEP)
    for t0 in range(begin, end, U):
        tiles = _read_all(p_scanned, t0, end, o_d, m_d, D, TILES, U)
        _write_gated(tiles, norm, p_xz, p_y, t0, end, grid, o_d, m_d, eps, D, TILES, KEEP, U, BD)


@triton.jit(do_not_specialize=GRID)
def _gate_moments(
    p_xz,
    p_scanned,
    p_ways,
    p_norm_weight,
    p_norm_bias,
    p_dy,
    p_moments,
    lines,
    size,
    step,
    line_step,
    group,
    group_step,
    T,
    eps,
    D: tl.constexpr,
    KS: tl.constexpr,
    LINES: tl.constexpr,
    TILES: tl.constexpr,
    KEEP: tl.constexpr,
    BD: tl.constexpr,
    U: tl.constexpr,
):
    """T tokens of `moments (B, L, 4)`, what `_gate_bwd` needs of all channels of a token (see `_write_moments`)."""
    grid = grid_of(lines, size, step, line_step, group, group_step)
    L = tokens_of(grid)
    i_b, begin, end = _program(L, T)
    p_xz += i_b * L * (2 * D)
    p_scanned += i_b * pooled_of(grid, LINES == 'interleaved') * (2 * D)
    p_dy += i_b * L * D
    p_moments += i_b * L * 4
    o_d, m_d = _channels(D, TILES, BD)
    norm = _open_norm(p_norm_weight, p_norm_bias, o_d, m_d, TILES, KEEP)
    ways = _open_ways(p_ways, o_d, m_d, D, KS, TILES, KEEP)
    state = _start(p_xz, p_scanned, begin, grid, o_d, m_d, D, KS, LINES, TILES, U, BD)
    for t0 in range(begin, end, U):
        tiles, state = _expand_all(
            state, ways, p_xz, p_scanned, t0, end, grid, o_d, m_d, D, KS, LINES, TILES, KEEP, U, BD
        )
        _write_moments(tiles, norm, p_xz, p_dy, p_moments, t0, end, grid, o_d, m_d, eps, D, TILES, KEEP, U, BD)


@triton.jit(do_not_specialize=GRID)
def _gate_tokens_moments(
    p_xz,
    p_scanned,
    p_norm_weight,
    p_norm_bias,
    p_dy,
    p_moments,
    lines,
    size,
    step,
    line_step,
    group,
    group_step,
    T,
    eps,
    D: tl.constexpr,
    TILES: tl.constexpr,
    KEEP: tl.constexpr,
    BD: tl.constexpr,
    U: tl.constexpr,
):
    """As `_gate_moments`, where nothing is pooled."""
    grid = grid_of(lines, size, step, line_step, group, group_step)
    L = tokens_of(grid)
    i_b, begin, end = _program(L, T)
    p_xz += i_b * L * (2 * D)
    p_scanned += i_b * L * (2 * D)
    p_dy += i_b * L * D
    p_moments += i_b * L * 4
    o_d, m_d = _channels(D, TILES, BD)
    norm = _open_norm(p_norm_weight, p_norm_bias, o_d, m_d, TILES, KEEP)
    for t0 in range(begin, end, U):
        tiles = _read_all(p_scanned, t0, end, o_d, m_d, D, TILES, U)
        _write_moments(tiles, norm, p_xz, p_dy, p_moments, t0, end, grid, o_d, m_d, eps, D, TILES, KEEP, U, BD)


def tiling(channels: int, pooled: bool) -> tuple[dict, int]:
    """Tiles of a program that holds all channels, and warps.

    As few idle lanes as up to `TILES` allow, up to six channels a lane. With more than 8 warps a thread has too few
    registers to keep the parameters, or more than a token. Where nothing is pooled there are no convolutions, and 8
    warps suffice.
    """
    sizes = {tiles: triton.next_power_of_2(triton.cdiv(channels, tiles)) for tiles in range(1, TILES + 1)}
    tiles = min(sizes, key=lambda tiles: (tiles * sizes[tiles], tiles))
    warps = min(16 if pooled else 8, triton.next_power_of_2(triton.cdiv(tiles * sizes[tiles], 6 * 32)))
    fits = warps <= 8
    return dict(TILES=tiles, BD=sizes[tiles], KEEP=fits, U=U if fits else 1), warps


class Gating(NamedTuple):
    """A pass over all channels as sizes fix it: the launch (None for no images) and its numbers."""

    launch: Launch | None
    numbers: dict[str, int | None]


def kind_of(lines: Lines, tile: int) -> str:
    """What lines are beside tiles of so many tokens: see `expand`."""
    return 'interleaved' if lines.interleaved else 'long' if lines.size >= tile else 'short'


def gating(xz_shape, lines: Lines, width: int, pooled: bool, device, moments=False) -> Gating:
    """How to launch `gate_fwd`, or with `moments` `gate_moments`; `width` is that of the convolutions."""
    batch, channels = xz_shape[0], xz_shape[-1] // 2
    if batch == 0:
        return Gating(None, {})
    part = min(LONGEST_RUN, max(SHORTEST_RUN, batch * lines.tokens // (4 * multiprocessors(device))))
    tiles, warps = tiling(channels, pooled)
    constants = dict(D=channels, **tiles, **launch_options(warps, is_cuda(device)))
    if pooled:
        kernel = _gate_moments if moments else _gate_fwd
        constants.update(KS=width, LINES=kind_of(lines, tiles['U']))
    else:
        kernel = _gate_tokens_moments if moments else _gate_tokens_fwd
    return Gating(Launch(kernel, batch * triton.cdiv(lines.tokens, part), **constants), lines.numbers(part))


def gate_fwd(xz, scanned, ways, norm, plan: Gating, eps: float) -> torch.Tensor:
    """Finish the tokens.

    Args:
        xz: `(B, H, W, 2D)` or `(B, H, W, K, 2D)`, dense.
        scanned: `(B, lines, 2, D)`, or `(B, L, 2, D)` with the skip where nothing is pooled.
        ways: parameters of both directions, `(2, KS + 2, D)`, or None where nothing is pooled.
        norm: weight and bias, `(D,)` each, or two None.
        plan: made for it.
        eps: added to the variance.

    Returns:
        `(B, H, W, D)` or `(B, H, W, K, D)` in the dtype of xz.
    """
    y = xz.new_empty((*xz.shape[:-1], xz.shape[-1] // 2))
    if plan.launch is not None:
        plan.launch.start(gate_inputs(xz, scanned, ways, norm) | dict(p_y=y, eps=eps) | plan.numbers)
    return y


def gate_moments(dy, xz, scanned, ways, norm, plan: Gating, eps: float) -> torch.Tensor:
    """From `dy (B, H, W, D)` what `gate_bwd` needs of each token, `(B, H, W, 4)` float32; as in `gate_fwd`."""
    moments = xz.new_empty((*xz.shape[:-1], 4), dtype=torch.float32)
    if plan.launch is not None:
        inputs = gate_inputs(xz, scanned, ways, norm)
        plan.launch.start(inputs | dict(p_dy=dy, p_moments=moments, eps=eps) | plan.numbers)
    return moments


def gate_inputs(xz, scanned, ways, norm) -> dict:
    """By the names that all kernels of the gate have for them; the ways where there are any."""
    inputs = dict(p_xz=xz, p_scanned=scanned, p_norm_weight=norm[0], p_norm_bias=norm[1])
    if ways is not None:
        inputs['p_ways'] = ways
    return inputs
