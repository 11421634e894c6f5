"""The adjoint of `triton_gate`: gradients of gate, scanned lines or tokens, skips and norm."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..shared_triton.launch import Launch
from ..shared_triton.numerics import is_cuda, keep, launch_options, share, silu, silu_slope
from ..shared_triton.runs import program_of_run
from .triton_gate import expand, gate_inputs, kind_of, read_halved_ways, read_mean_rows, read_mean_tile, read_norm
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
    read_tile,
    read_window,
    run_of_lines,
    tokens_of,
    write_line,
    write_lines,
)

BLOCK, U = 64, 8
"""Channels of a program, one warp, and tokens of its tiles.

In tiles of four tokens (bfloat16, Triton 3.7.1, sm_90) lanes that hold the same sum over tokens had it rounded
differently: which of them is stored would be left to the hardware.
"""


@triton.jit
def _start_norm(p_weight, p_bias, o_d, m_d, BD: tl.constexpr):
    """Weight and bias of the norm, and the sums of their gradients, `(BD,)` each; nothing where there is no norm."""
    norm = ()
    sums = ()
    if p_weight is not None:
        norm = read_norm(p_weight, p_bias, o_d, m_d)  # (BD,) each
        sums = (tl.zeros((BD,), tl.float32), tl.zeros((BD,), tl.float32))
    return norm, sums


@triton.jit
def _ungate(
    y,
    sums,
    norm,
    p_xz,
    p_dy,
    p_moments,
    p_dxz,
    t0,
    end,
    grid,
    o_d,
    m_d,
    D: tl.constexpr,
    U: tl.constexpr,
):
    """Half the gradient of the mixed tokens `y (U, BD)`, for either direction; writes that of z.

    Without a norm (None): dy * silu(z), and dz = dy * silu'(z) * y. With the moments (mean, scale, a, b) of a token:

        normed = (y - mean) * scale                     dn = dy * silu(z) * weight
        gradient = scale * (dn - a - normed * b)        dz = dy * silu'(z) * (weight * normed + bias)

    `sums`: of dy * silu(z) * normed and of dy * silu(z), the norm's own gradients, `(BD,)` each.
    """
    m_t = t0 + tl.arange(0, U) < end
    _, _, pixels = locate(t0, grid, U)
    z = read_tile(p_xz + D, t0, end, grid, o_d, m_d, 2 * D, U)  # (U, BD)
    g = read_tile(p_dy, t0, end, grid, o_d, m_d, D, U)  # (U, BD)
    dz = g * silu_slope(z)
    g = g * silu(z)
    if p_moments is not None:
        weight, bias = norm
        dweight, dbias = sums
        p_moment = p_moments + pixels * 4
        mean = tl.load(p_moment, mask=m_t, other=0.0)[:, None]  # (U,)
        scale = tl.load(p_moment + 1, mask=m_t, other=0.0)[:, None]  # (U,)
        slope = tl.load(p_moment + 2, mask=m_t, other=0.0)[:, None]  # (U,)
        along = tl.load(p_moment + 3, mask=m_t, other=0.0)[:, None]  # (U,)
        normed = (y - mean) * scale
        dz = dz * (normed * weight[None, :] + bias[None, :])
        sums = (dweight + tl.sum(g * normed, axis=0), dbias + tl.sum(g, axis=0))
        g = (g * weight[None, :] - slope - normed * along) * scale
    else:
        dz = dz * y
    mask = m_t[:, None] & m_d[None, :]
    tl.store(p_dxz + D + pixels[:, None] * (2 * D) + o_d[None, :], dz.to(p_dxz.dtype.element_ty), mask=mask)
    return 0.5 * g, sums


@triton.jit
def _write_norm(p_dparameters, sums, o_d, m_d, D: tl.constexpr):
    """A program's sums of `_ungate` to the rows 2 and 3 of `dparameters (4, D)`."""
    dweight, dbias = sums
    tl.store(p_dparameters + 2 * D + o_d, dweight, mask=m_d)
    tl.store(p_dparameters + 3 * D + o_d, dbias, mask=m_d)


@triton.jit
def _write_parameters(p_dparameters, dskip_forth, dskip_back, p_moments, sums, o_d, m_d, D: tl.constexpr):
    """A program's sums to all rows of `dparameters (4, D)`, those of a norm if there is one."""
    tl.store(p_dparameters + o_d, dskip_forth, mask=m_d)
    tl.store(p_dparameters + D + o_d, dskip_back, mask=m_d)
    if p_moments is not None:
        _write_norm(p_dparameters, sums, o_d, m_d, D)


@triton.jit(do_not_specialize=GRID)
def _gate_bwd(
    p_xz,
    p_scanned,
    p_ways,
    p_norm_weight,
    p_norm_bias,
    p_dy,
    p_moments,
    p_dxz,
    p_dtokens,
    p_dlines,
    p_dparameters,
    lines,
    size,
    step,
    line_step,
    group,
    group_step,
    T,
    D: tl.constexpr,
    KS: tl.constexpr,
    LINES: tl.constexpr,
    BD: tl.constexpr,
    U: tl.constexpr,
):
    """The adjoint of `_gate_fwd` (see `_ungate`), from `dy (B, H, W, D)`; a program takes T lines.

    dz to the second half of `dxz (B, H, W, 2D)`. The gradient, the same for both directions, of every token's skip
    times u to `dtokens (B, H, W, D)`, its sum over a line to `dlines (B, lines, 2, D)`.
    `dparameters (B, runs, 4, D)`: sums over the program's tokens, of both skips and of the norm's weight and bias.
    """
    grid = grid_of(lines, size, step, line_step, group, group_step)
    L = tokens_of(grid)
    i_b, i_run, o_d, m_d = program_of_run(lines, T, D, BD)
    p_xz += i_b * L * (2 * D)
    p_dxz += i_b * L * (2 * D)
    p_dy += i_b * L * D
    p_dtokens += i_b * L * D
    p_scanned += i_b * lines * (2 * D)
    p_dlines += i_b * lines * (2 * D)
    zero = tl.zeros((BD,), tl.float32)
    held, dline, dskip_forth, dskip_back = zero, zero, zero, zero
    if p_moments is not None:
        p_moments += i_b * L * 4
    norm, sums = _start_norm(p_norm_weight, p_norm_bias, o_d, m_d, BD)
    begin, end = run_of_lines(i_run, T, grid)
    ways = read_halved_ways(p_ways, o_d, m_d, D, KS)  # (BD,) each
    window = read_window(p_xz, begin, grid, o_d, m_d, 2 * D, KS, U, BD)  # (BD,) each
    for t0 in range(begin, end, U):
        window, u_forth, u_back = activate(window, p_xz, t0, grid, ways, o_d, m_d, D, KS, U, BD)
        window = keep(window, U, 2 * KS - 2)
        y, held = expand(held, u_forth, u_back, ways, p_scanned, t0, end, grid, o_d, m_d, D, KS, U, LINES)
        g, sums = _ungate(y, sums, norm, p_xz, p_dy, p_moments, p_dxz, t0, end, grid, o_d, m_d, D, U)
        line, further, pixels = locate(t0, grid, U)
        inside = t0 + tl.arange(0, U) < end
        p_token = p_dtokens + pixels[:, None] * D + o_d[None, :]
        tl.store(p_token, g.to(p_dtokens.dtype.element_ty), mask=inside[:, None] & m_d[None, :])
        dskip_forth += tl.sum(g * u_forth, axis=0)
        dskip_back += tl.sum(g * u_back, axis=0)
        for i_line in range(line, lines_until(t0, end, grid, U)):
            dline = gather(dline, g, (inside & (further == i_line - line))[:, None], False)
            complete = ends_in(i_line, t0, grid, U)
            write_line(p_dlines, i_line, o_d, m_d & complete, dline, dline, D)
            dline = tl.where(complete, zero, dline)
    p_dparameters += (i_b * tl.cdiv(lines, T) + i_run) * (4 * D)
    _write_parameters(p_dparameters, dskip_forth, dskip_back, p_moments, sums, o_d, m_d, D)


@triton.jit(do_not_specialize=GRID)
def _gate_planes_bwd(
    p_xz,
    p_scanned,
    p_ways,
    p_norm_weight,
    p_norm_bias,
    p_dy,
    p_moments,
    p_dxz,
    p_dtokens,
    p_dlines,
    p_dparameters,
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
    """As `_gate_bwd`, of interleaved lines: U are walked together, as in `_pool_planes_fwd`."""
    grid = grid_of(lines, size, step, line_step, group, group_step)
    count = items_of(grid, U)
    i_b, i_run, o_d, m_d = program_of_run(count, T, D, BD)
    L = tokens_of(grid)
    p_xz += i_b * L * (2 * D)
    p_dxz += i_b * L * (2 * D)
    p_dy += i_b * L * D
    p_dtokens += i_b * L * D
    p_scanned += i_b * pooled_of(grid, True) * (2 * D)
    p_dlines += i_b * pooled_of(grid, True) * (2 * D)
    if p_moments is not None:
        p_moments += i_b * L * 4
    dskip_forth = tl.zeros((BD,), tl.float32)
    dskip_back = dskip_forth
    norm, sums = _start_norm(p_norm_weight, p_norm_bias, o_d, m_d, BD)
    ways = read_halved_ways(p_ways, o_d, m_d, D, KS)  # (BD,) each
    o_u = tl.arange(0, U)
    for item in range(i_run * T, tl.minimum(count, (i_run + 1) * T)):
        begin, line, left = item_of(item, grid, U)
        mean = read_mean_rows(p_scanned, (line + o_u).to(tl.int64), o_u < left, o_d, m_d, D)  # (U, BD)
        dline = tl.zeros((U, BD), tl.float32)
        for t0 in range(begin, begin + group * size, size):
            window = read_window(p_xz, t0, grid, o_d, m_d, 2 * D, KS, U, BD)  # (BD,) each
            _, u_forth, u_back = activate(window, p_xz, t0, grid, ways, o_d, m_d, D, KS, U, BD)
            y = ways[0][KS + 1][None, :] * u_forth + ways[1][KS + 1][None, :] * u_back + mean
            g, sums = _ungate(y, sums, norm, p_xz, p_dy, p_moments, p_dxz, t0, t0 + left, grid, o_d, m_d, D, U)
            _, _, pixels = locate(t0, grid, U)
            p_token = p_dtokens + pixels[:, None] * D + o_d[None, :]
            tl.store(p_token, g.to(p_dtokens.dtype.element_ty), mask=(o_u < left)[:, None] & m_d[None, :])
            dskip_forth += tl.sum(g * u_forth, axis=0)
            dskip_back += tl.sum(g * u_back, axis=0)
            dline += g
        write_lines(p_dlines, line, left, o_d, m_d, dline, dline, D, U)
    p_dparameters += (i_b * tl.cdiv(count, T) + i_run) * (4 * D)
    _write_parameters(p_dparameters, dskip_forth, dskip_back, p_moments, sums, o_d, m_d, D)


@triton.jit(do_not_specialize=GRID)
def _gate_tokens_bwd(
    p_xz,
    p_scanned,
    p_norm_weight,
    p_norm_bias,
    p_dy,
    p_moments,
    p_dxz,
    p_dtokens,
    p_dparameters,
    lines,
    size,
    step,
    line_step,
    group,
    group_step,
    T,
    D: tl.constexpr,
    BD: tl.constexpr,
    U: tl.constexpr,
):
    """The adjoint of `_gate_tokens_fwd`; a program takes T lines.

    The gradient of `scanned`, the same for both directions, to `dtokens (B, L, 2, D)`, a sequence. Of `dparameters`
    only what belongs to a norm. The rest as in `_gate_bwd`.
    """
    grid = grid_of(lines, size, step, line_step, group, group_step)
    L = tokens_of(grid)
    i_b, i_run, o_d, m_d = program_of_run(lines, T, D, BD)
    p_xz += i_b * L * (2 * D)
    p_dxz += i_b * L * (2 * D)
    p_dy += i_b * L * D
    p_dtokens += i_b * L * (2 * D)
    p_scanned += i_b * L * (2 * D)
    if p_moments is not None:
        p_moments += i_b * L * 4
    norm, sums = _start_norm(p_norm_weight, p_norm_bias, o_d, m_d, BD)
    begin, end = run_of_lines(i_run, T, grid)
    for t0 in range(begin, end, U):
        y = read_mean_tile(p_scanned, t0, end, o_d, m_d, D, U)  # (U, BD)
        g, sums = _ungate(y, sums, norm, p_xz, p_dy, p_moments, p_dxz, t0, end, grid, o_d, m_d, D, U)
        t = t0 + tl.arange(0, U)
        mask = (t < end)[:, None] & m_d[None, :]
        p_token = p_dtokens + t.to(tl.int64)[:, None] * (2 * D) + o_d[None, :]
        tl.store(p_token, g.to(p_dtokens.dtype.element_ty), mask=mask)
        tl.store(p_token + D, g.to(p_dtokens.dtype.element_ty), mask=mask)
    if p_moments is not None:
        _write_norm(p_dparameters + (i_b * tl.cdiv(lines, T) + i_run) * (4 * D), sums, o_d, m_d, D)


class GatingBack(NamedTuple):
    """The adjoint as sizes fix it: runs of all images, the launch (None for no images) and its numbers."""

    runs: int
    launch: Launch | None
    numbers: dict[str, int | None]


def gating_back(xz_shape, lines: Lines, width: int, pooled: bool, norm: bool, device) -> GatingBack:
    """How to launch `gate_bwd`; `width` is that of the convolutions."""
    batch, channels = xz_shape[0], xz_shape[-1] // 2
    if batch == 0:
        return GatingBack(0, None, {})
    count = lines.items(U) if lines.interleaved else lines.lines
    blocks = triton.cdiv(channels, BLOCK)
    part = share(count, batch * blocks, device)
    runs = batch * triton.cdiv(count, part)
    options = launch_options(1, not norm and is_cuda(device))  # with the norm it takes all registers anyway
    constants = dict(D=channels, BD=BLOCK, U=U, **options)
    kernel = _gate_tokens_bwd
    if lines.interleaved:
        kernel = _gate_planes_bwd
        constants.update(KS=width)
    elif pooled:
        kernel = _gate_bwd
        constants.update(KS=width, LINES=kind_of(lines, U))
    return GatingBack(runs, Launch(kernel, runs * blocks, **constants), lines.numbers(part))


def gate_bwd(dy, moments, dxz, xz, scanned, ways, norm, plan: GatingBack, dtype):
    """Fill the second half of `dxz` with the gradient of z.

    Args:
        dy: gradient of the result, `(B, H, W, D)`.
        moments: what `gate_moments` found, or None without a norm.
        dxz: to be filled.
        xz, scanned, ways, norm: as in `gate_fwd`.
        plan: made for it.
        dtype: of the gradients of what is as large as the tokens.

    Returns:
        Gradient of every token's skip `(B, H, W, D)`, of `dtype`, or where nothing is pooled None; gradient of
        `scanned`, float32 where something is pooled, else of `dtype`; gradients of both skips, of the norm's weight
        and bias, `(4, D)` float32, in which what does not exist is undefined.
    """
    channels, pooled = xz.shape[-1] // 2, ways is not None
    dtokens = xz.new_empty((*xz.shape[:-1], channels if pooled else 2 * channels), dtype=dtype)
    dlines = dict(p_dlines=torch.empty_like(scanned)) if pooled else {}
    partial = xz.new_empty((plan.runs, 4, channels), dtype=torch.float32)
    if plan.launch is not None:
        outputs = dict(p_dxz=dxz, p_dtokens=dtokens, p_dparameters=partial) | dlines
        inputs = gate_inputs(xz, scanned, ways, norm) | dict(p_dy=dy, p_moments=moments)
        plan.launch.start(inputs | outputs | plan.numbers)
    sums = partial[0] if plan.runs == 1 else partial.sum(0)
    return (dtokens, dlines['p_dlines'], sums) if pooled else (None, dtokens.view_as(scanned), sums)
