"""From the short sequences back to the tokens: expansion, skip, mean of both directions, layer normalisation, gate.

The normalisation needs all channels of a token in one program: several tiles of channels, so that 3 * 2^k channels
leave no lane idle. Its adjoint needs four numbers a token from all channels, which a pass of its own finds; the rest of
the backward pass shares channels out among programs like the convolutions do.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..shared_triton.launch import Launch
from ..shared_triton.numerics import is_cuda, keep, launch_options, multiprocessors, share, silu, silu_slope
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

TILES = 5
"""Most tiles of channels of a program that holds them all."""

U = 4
"""Tokens of such a program's tiles."""

BLOCK, U_BACK = 64, 8
"""Channels of the other programs, one warp each, and tokens of their tiles."""

SHORTEST_RUN, LONGEST_RUN = 32, 512
"""Tokens of such a program: shorter runs would read more weights than tokens."""


@triton.jit
def _read_ways(
    p_weight_forth, p_bias_forth, p_skip_forth, p_weight_back, p_bias_back, p_skip_back, o_d, m_d, KS: tl.constexpr
):
    """Taps and half the skips of both directions."""
    taps_forth = read_taps(p_weight_forth, p_bias_forth, o_d, m_d, KS)
    taps_back = read_taps(p_weight_back, p_bias_back, o_d, m_d, KS)
    skip_forth = 0.5 * tl.load(p_skip_forth + o_d, mask=m_d, other=0.0).to(tl.float32)
    return taps_forth, taps_back, skip_forth, 0.5 * tl.load(p_skip_back + o_d, mask=m_d, other=0.0).to(tl.float32)


@triton.jit
def _read_mean(p_scanned, line, o_d, mask, D: tl.constexpr):
    """Mean of what both directions give a line."""
    forth, back = read_line(p_scanned, line, o_d, mask, D)
    return 0.5 * (forth + back)


@triton.jit
def _read_norm(p_weight, p_bias, o_d, m_d):
    """Weight and bias of the norm."""
    weight = tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    return weight, tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)


@triton.jit
def _expand(
    expanded, u_forth, u_back, skip_forth, skip_back, p_scanned, t0, end, line, further, size, o_d, m_d,
    D: tl.constexpr, U: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Mean of both directions at U tokens, and what the last one's line gives them all (`expanded` on the way in).

    LONG: lines are as long as a tile, so that at most one begins in it.
    """
    y = skip_forth[None, :] * u_forth + skip_back[None, :] * u_back
    if LONG:
        place = t0 - line * size
        begins = (place == 0) | (place + U > size)
        i_line = line + (place != 0).to(tl.int32)
        mean = _read_mean(p_scanned, i_line, o_d, m_d & begins & (i_line * size < end), D)
        y += tl.where(((further > 0) | (place == 0))[:, None], mean[None, :], expanded[None, :])
        expanded = tl.where(begins, mean, expanded)
    else:
        for i_line in range(line, (tl.minimum(t0 + U, end) - 1) // size + 1):
            new = i_line * size >= t0
            expanded = tl.where(new, _read_mean(p_scanned, i_line, o_d, m_d & new, D), expanded)
            y += tl.where((further == i_line - line)[:, None], expanded[None, :], 0.0)
    return y, expanded


@triton.jit(do_not_specialize=['lines', 'size', 'step', 'line_step', 'T'])
def _gate(
    p_xz, p_scanned, p_weight_forth, p_bias_forth, p_skip_forth, p_weight_back, p_bias_back, p_skip_back,
    p_norm_weight, p_norm_bias, p_dy, p_y, p_moments,
    lines, size, step, line_step, T, eps,
    D: tl.constexpr, KS: tl.constexpr, POOLED: tl.constexpr, NORM: tl.constexpr, ADJOINT: tl.constexpr,
    LONG: tl.constexpr, TILES: tl.constexpr, KEEP: tl.constexpr, BD: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """T tokens to `y (B, H, W, D)`.

    `scanned (B, lines, 2, D)` is each line's result, or where nothing is pooled each token's, skip included.
    KEEP: keep the parameters in registers rather than read them for every tile.
    ADJOINT: from the gradient `dy` instead what `_gate_back` needs of a token, `moments (B, L, 4)`: mean, inverse
    deviation, mean of the normalised value's gradient, mean of its product with the normalised value.
    """
    KEPT: tl.constexpr = 2 * KS - 2
    L = lines * size
    runs = tl.cdiv(L, T)
    i_run = tl.program_id(0) % runs
    i_b = tl.cast(tl.program_id(0) // runs, tl.int64)
    p_xz += i_b * L * (2 * D)
    p_y += i_b * L * D
    p_dy += i_b * L * D
    p_moments += i_b * L * 4
    p_scanned += i_b * (lines if POOLED else L) * (2 * D)
    begin = i_run * T
    end = tl.minimum(L, begin + T)

    o_d = ()
    m_d = ()
    ways = ()
    norms = ()
    windows = ()
    expanded = ()
    for c in tl.static_range(TILES):
        o = c * BD + tl.arange(0, BD)
        m = (o < D) | (D == TILES * BD)
        o_d = o_d + (o,)
        m_d = m_d + (m,)
        if NORM and KEEP:
            norms = norms + (_read_norm(p_norm_weight, p_norm_bias, o, m),)
        if POOLED:
            if KEEP:
                ways = ways + (
                    _read_ways(
                        p_weight_forth, p_bias_forth, p_skip_forth, p_weight_back, p_bias_back, p_skip_back, o, m, KS
                    ),
                )  # fmt: skip
            windows = windows + read_window(p_xz, begin, L, size, step, line_step, o, m, 2 * D, KS, U, BD)
            expanded = expanded + (_read_mean(p_scanned, begin // size, o, m, D),)

    for t0 in range(begin, end, U):
        t = t0 + tl.arange(0, U)
        line, further, pixels = locate(t0, size, step, line_step, U)
        tiles = ()
        next_windows = ()
        next_expanded = ()
        for c in tl.static_range(TILES):
            if POOLED:
                window = keep(windows, c * KEPT, KEPT)
                window = extend_window(window, p_xz, t0, L, size, step, line_step, o_d[c], m_d[c], 2 * D, KS, U, BD)
                if KEEP:
                    taps_forth, taps_back, skip_forth, skip_back = ways[c]
                else:
                    taps_forth, taps_back, skip_forth, skip_back = _read_ways(
                        p_weight_forth, p_bias_forth, p_skip_forth, p_weight_back, p_bias_back, p_skip_back,
                        o_d[c], m_d[c], KS,
                    )  # fmt: skip
                u_forth, u_back = convolve(window, taps_forth, taps_back, KS, U, BD)
                tile, line_value = _expand(
                    expanded[c], silu(u_forth), silu(u_back), skip_forth, skip_back, p_scanned, t0, end, line,
                    further, size, o_d[c], m_d[c], D, U, LONG,
                )  # fmt: skip
                next_windows = next_windows + keep(window, U, KEPT)
                next_expanded = next_expanded + (line_value,)
            else:
                tile = read_tile(p_scanned, t0, end, size, step, line_step, o_d[c], m_d[c], 2 * D, U)
                tile += read_tile(p_scanned + D, t0, end, size, step, line_step, o_d[c], m_d[c], 2 * D, U)
                tile *= 0.5
            tiles = tiles + (tile,)
        windows = next_windows
        expanded = next_expanded

        if NORM:
            # tiles are added before lanes exchange anything
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
            tiles = ()
            for c in tl.static_range(TILES):
                tiles = tiles + (centred[c] * scale[:, None],)

        if ADJOINT:
            slopes = tl.zeros((U, BD), tl.float32)
            products = tl.zeros((U, BD), tl.float32)
        for c in tl.static_range(TILES):
            z = read_tile(p_xz + D, t0, end, size, step, line_step, o_d[c], m_d[c], 2 * D, U)
            tile = tiles[c]
            if NORM:
                if KEEP:
                    norm_weight, norm_bias = norms[c]
                else:
                    norm_weight, norm_bias = _read_norm(p_norm_weight, p_norm_bias, o_d[c], m_d[c])
            if ADJOINT:
                dy = read_tile(p_dy, t0, end, size, step, line_step, o_d[c], m_d[c], D, U)
                dnormed = dy * silu(z) * norm_weight[None, :]
                slopes += dnormed
                products += dnormed * tile
            else:
                if NORM:
                    tile = tile * norm_weight[None, :] + norm_bias[None, :]
                p = p_y + pixels[:, None] * D + o_d[c][None, :]
                m_y = (t < end)[:, None] & m_d[c][None, :]
                tl.store(p, (tile * silu(z)).to(p_y.dtype.element_ty), mask=m_y)
        if ADJOINT:
            tl.store(p_moments + pixels * 4, mean, mask=t < end)
            tl.store(p_moments + pixels * 4 + 1, scale, mask=t < end)
            tl.store(p_moments + pixels * 4 + 2, tl.sum(slopes, axis=1) / D, mask=t < end)
            tl.store(p_moments + pixels * 4 + 3, tl.sum(products, axis=1) / D, mask=t < end)


@triton.jit(do_not_specialize=['lines', 'size', 'step', 'line_step', 'T'])
def _gate_back(
    p_xz, p_scanned, p_weight_forth, p_bias_forth, p_skip_forth, p_weight_back, p_bias_back, p_skip_back,
    p_norm_weight, p_norm_bias, p_dy, p_moments, p_dxz, p_dtokens, p_dlines, p_dparameters,
    lines, size, step, line_step, T,
    D: tl.constexpr, KS: tl.constexpr, POOLED: tl.constexpr, NORM: tl.constexpr, LONG: tl.constexpr, BD: tl.constexpr,
    U: tl.constexpr,
):  # fmt: skip
    """T lines, from the gradient `dy (B, H, W, D)`: dz into the second half of `dxz (B, H, W, 2D)`.

    What reaches every token's skip in `dtokens (B, H, W, D)` and every line's scan in `dlines (B, lines, 2, D)`, the
    same for both directions; where nothing is pooled only the former, as `(B, H, W, 2, D)`.
    Sums over the program's tokens in `dparameters (B, runs, 4, D)`: both skips, weight and bias of the norm.
    """
    BLOCKS: tl.constexpr = tl.cdiv(D, BD)
    DW: tl.constexpr = D if POOLED else 2 * D
    i = tl.program_id(0)
    o_d = (i % BLOCKS) * BD + tl.arange(0, BD)
    m_d = o_d < D
    runs = tl.cdiv(lines, T)
    i_run = i // BLOCKS % runs
    i_b = tl.cast(i // BLOCKS // runs, tl.int64)
    L = lines * size
    p_xz += i_b * L * (2 * D)
    p_dxz += i_b * L * (2 * D)
    p_dy += i_b * L * D
    p_dtokens += i_b * L * DW
    p_moments += i_b * L * 4
    p_scanned += i_b * (lines if POOLED else L) * (2 * D)
    p_dlines += i_b * lines * (2 * D)
    begin = i_run * T * size
    end = tl.minimum(lines, (i_run + 1) * T) * size
    zero = tl.zeros((BD,), tl.float32)
    expanded = zero
    dline = zero
    dskip_forth = zero
    dskip_back = zero
    dweight = zero
    dbias = zero
    window = ()
    if POOLED:
        taps_forth, taps_back, skip_forth, skip_back = _read_ways(
            p_weight_forth, p_bias_forth, p_skip_forth, p_weight_back, p_bias_back, p_skip_back, o_d, m_d, KS
        )
        window = read_window(p_xz, begin, L, size, step, line_step, o_d, m_d, 2 * D, KS, U, BD)
    if NORM:
        norm_weight, norm_bias = _read_norm(p_norm_weight, p_norm_bias, o_d, m_d)
    o_t = tl.arange(0, U)
    for t0 in range(begin, end, U):
        inside = t0 + o_t < end
        m = inside[:, None] & m_d[None, :]
        line, further, pixels = locate(t0, size, step, line_step, U)
        if POOLED:
            window = extend_window(window, p_xz, t0, L, size, step, line_step, o_d, m_d, 2 * D, KS, U, BD)
            u_forth, u_back = convolve(window, taps_forth, taps_back, KS, U, BD)
            window = keep(window, U, 2 * KS - 2)
            u_forth = silu(u_forth)
            u_back = silu(u_back)
            y, expanded = _expand(
                expanded, u_forth, u_back, skip_forth, skip_back, p_scanned, t0, end, line, further, size, o_d, m_d,
                D, U, LONG,
            )  # fmt: skip
        else:
            y = read_tile(p_scanned, t0, end, size, step, line_step, o_d, m_d, 2 * D, U)
            y += read_tile(p_scanned + D, t0, end, size, step, line_step, o_d, m_d, 2 * D, U)
            y *= 0.5
        z = read_tile(p_xz + D, t0, end, size, step, line_step, o_d, m_d, 2 * D, U)
        g = read_tile(p_dy, t0, end, size, step, line_step, o_d, m_d, D, U)
        dz = g * silu_slope(z)
        g = g * silu(z)
        if NORM:
            mean = tl.load(p_moments + pixels * 4, mask=inside, other=0.0)
            scale = tl.load(p_moments + pixels * 4 + 1, mask=inside, other=0.0)
            slope = tl.load(p_moments + pixels * 4 + 2, mask=inside, other=0.0)
            along = tl.load(p_moments + pixels * 4 + 3, mask=inside, other=0.0)
            normed = (y - mean[:, None]) * scale[:, None]
            dz = dz * (normed * norm_weight[None, :] + norm_bias[None, :])
            dweight += tl.sum(g * normed, axis=0)
            dbias += tl.sum(g, axis=0)
            g = (g * norm_weight[None, :] - slope[:, None] - normed * along[:, None]) * scale[:, None]
        else:
            dz = dz * y
        g = 0.5 * g
        tl.store(p_dxz + D + pixels[:, None] * (2 * D) + o_d[None, :], dz.to(p_dxz.dtype.element_ty), mask=m)
        p = p_dtokens + pixels[:, None] * DW + o_d[None, :]
        tl.store(p, g.to(p_dtokens.dtype.element_ty), mask=m)
        if POOLED:
            dskip_forth += tl.sum(g * u_forth, axis=0)
            dskip_back += tl.sum(g * u_back, axis=0)
            for i_line in range(line, (tl.minimum(t0 + U, end) - 1) // size + 1):
                dline += tl.sum(tl.where((inside & (further == i_line - line))[:, None], g, 0.0), axis=0)
                complete = (i_line + 1) * size <= t0 + U
                write_line(p_dlines, i_line, o_d, m_d & complete, dline, dline, D)
                dline = tl.where(complete, zero, dline)
        else:
            tl.store(p + D, g.to(p_dtokens.dtype.element_ty), mask=m)
    p_dparameters += (i_b * runs + i_run) * (4 * D) + o_d
    if POOLED:
        tl.store(p_dparameters, dskip_forth, mask=m_d)
        tl.store(p_dparameters + D, dskip_back, mask=m_d)
    if NORM:
        tl.store(p_dparameters + 2 * D, dweight, mask=m_d)
        tl.store(p_dparameters + 3 * D, dbias, mask=m_d)


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


def _parameters(forth, back):
    return (
        *(forth.conv_weight, forth.conv_bias, forth.Ds),
        *(back.conv_weight, back.conv_bias, back.Ds),
    )


class Gating(NamedTuple):
    """`_gate` as sizes fix it: tokens of a program, the launch (None for no images)."""

    part: int
    launch: Launch | None


def gating(xz_shape, lines: Lines, width: int, pooled: bool, norm: bool, device, adjoint=False) -> Gating:
    """How to launch `_gate`; `width` is that of the convolutions."""
    batch, channels = xz_shape[0], xz_shape[3] // 2
    tokens = lines.lines * lines.size
    part = min(LONGEST_RUN, max(SHORTEST_RUN, batch * tokens // (4 * multiprocessors(device))))
    if batch == 0:
        return Gating(part, None)
    tiles, warps = tiling(channels, pooled)
    return Gating(
        part,
        Launch(
            _gate,
            batch * triton.cdiv(tokens, part),
            **dict(D=channels, KS=width, POOLED=pooled, NORM=norm),
            **dict(ADJOINT=adjoint, LONG=pooled and lines.size >= tiles['U'], **tiles),
            **launch_options(warps, is_cuda(device)),
        ),
    )


def gate(xz, scanned, plan: Gating, lines: Lines, forth, back, norm, eps: float, dy=None):
    """Finish the tokens.

    Args:
        xz: `(B, H, W, 2D)`, dense.
        scanned: `(B, lines, 2, D)`, or `(B, L, 2, D)` with the skip where nothing is pooled.
        plan: made for it.
        lines: of the grid.
        forth, back: parameters, a `Direction` each.
        norm: weight and bias, `(D,)` each, or None.
        eps: added to the variance.
        dy: the result's gradient, to find instead of the result what `gate_backward` needs of it.

    Returns:
        `(B, H, W, D)` in the dtype of xz; with `dy` moments `(B, L, 4)`, float32.
    """
    batch, height, width, channels = xz.shape
    if dy is None:
        result = xz.new_empty((batch, height, width, channels // 2))
    else:
        result = xz.new_empty((batch, height * width, 4), dtype=torch.float32)
    if plan.launch is not None:
        weight, bias = norm or (xz, xz)
        plan.launch(
            (xz, scanned, *_parameters(forth, back), weight, bias, xz if dy is None else dy, result, result),
            *(*lines, plan.part, eps),
        )
    return result


class GatingBack(NamedTuple):
    """`_gate_back` as sizes fix it: runs of an image, lines of a run, the launch (None for no images)."""

    runs: int
    part: int
    launch: Launch | None


def gating_back(xz_shape, lines: Lines, width: int, pooled: bool, norm: bool, device) -> GatingBack:
    """How to launch `_gate_back`."""
    batch, channels = xz_shape[0], xz_shape[3] // 2
    blocks = triton.cdiv(channels, BLOCK)
    part = share(lines.lines, batch * blocks, device)
    runs = triton.cdiv(lines.lines, part)
    if batch == 0:
        return GatingBack(runs, part, None)
    launch = Launch(
        _gate_back,
        batch * runs * blocks,
        **dict(D=channels, KS=width, POOLED=pooled, NORM=norm),
        **dict(LONG=pooled and lines.size >= U_BACK, BD=BLOCK, U=U_BACK),
        **launch_options(1, not norm and is_cuda(device)),  # with the norm it takes them all anyway
    )
    return GatingBack(runs, part, launch)


def gate_backward(dy, dxz, xz, scanned, plans, lines: Lines, forth, back, norm, eps, pooled, dtype):
    """Adjoint of `gate`: fill the second half of `dxz`.

    Args:
        plans: a `GatingBack` and, with `adjoint`, a `Gating`; the others as in `gate`.
        pooled: whether `scanned` has a token a line.
        dtype: of the gradients of what is as large as the tokens.

    Returns:
        Gradient of every token's skip `(B, H, W, D)`, of `dtype`, or where nothing is pooled None; gradient of
        `scanned`, float32 where something is pooled, else of `dtype`; gradients of both skips, of the norm's weight
        and bias, `(4, D)` float32, in which what does not exist is undefined.
    """
    batch, channels = xz.shape[0], xz.shape[3] // 2
    plan, moments = plans
    dtokens = xz.new_empty((*xz.shape[:3], channels if pooled else 2 * channels), dtype=dtype)
    dlines = torch.empty_like(scanned) if pooled else dtokens
    partial = xz.new_empty((batch * plan.runs, 4, channels), dtype=torch.float32)
    if plan.launch is not None:
        found = xz if norm is None else gate(xz, scanned, moments, lines, forth, back, norm, eps, dy)
        weight, bias = norm or (xz, xz)
        plan.launch(
            (xz, scanned, *_parameters(forth, back), weight, bias, dy, found, dxz, dtokens, dlines, partial),
            *(*lines, plan.part),
        )
    sums = partial[0] if partial.shape[0] == 1 else partial.sum(0)
    return (dtokens, dlines, sums) if pooled else (None, dtokens.view_as(scanned), sums)
