"""Depthwise convolution, bias and SiLU in one pass over a channels-last grid, forward and backward.

Lanes are channels. A program walks a run of pixels, row after row of the grid, and keeps what the neighbourhoods of a
tile and of the next have in common in registers: of every k x k neighbourhood only the k pixels that are new are read.

Backward recomputes the convolution: one kernel turns dy into the gradient before SiLU and sums weights and bias, one
partial a program; another convolves with the mirrored taps, which gives dx. No atomics.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..shared_triton.launch import Launch, on_device, planned
from ..shared_triton.numerics import (
    dense,
    keep,
    load_tile,
    programs_of_runs,
    row_pointers,
    share,
    silu,
    silu_slope,
    store_tile,
)
from ..shared_triton.runs import program_of_run
from ..shared_triton.sums import collecting

U = 8
"""Pixels of a tile."""

SHORTEST_RUN = 64
"""Pixels of a program: shorter runs would read more pixels and weights twice than they win."""


@triton.jit
def _read_rows(p_x, t0, L, m_d, D: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, VECTOR: tl.constexpr):
    """The pixels t0 to t0 + U - 1 of an image as rows, zero where there is none."""
    o_t = tl.arange(0, U)
    mask = ((t0 + o_t).to(tl.uint32) < L.to(tl.uint32))[:, None] & m_d[None, :]  # below zero is far above L
    return load_tile(row_pointers(p_x + t0 * D, o_t * D, VECTOR), mask, U, BD)


@triton.jit
def _write_rows(p_y, t0, end, rows, m_d, D: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, VECTOR: tl.constexpr):
    """The inverse of `_read_rows`."""
    o_t = tl.arange(0, U)
    mask = (t0 + o_t < end)[:, None] & m_d[None, :]
    store_tile(row_pointers(p_y + t0 * D, o_t * D, VECTOR), rows, mask, U, BD)


@triton.jit
def _read_window(
    p_x, t0, W, L, m_d, D: tl.constexpr, KS: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, VECTOR: tl.constexpr
):
    """What the neighbourhoods of pixel t0 and of the one before it have in common: KS - 1 pixels of KS lines."""
    window = ()
    for i in tl.static_range(KS):
        first = t0 + (i - KS // 2) * W - KS // 2
        end = tl.maximum(tl.minimum(L, first + KS - 1), 0)
        for j in tl.static_range((KS - 2 + U) // U):
            rows = _read_rows(p_x, first + j * U, end, m_d, D, U, BD, VECTOR)
            for k in tl.static_range(U):
                if j * U + k < KS - 1:
                    window = window + (rows[k],)
    return window


@triton.jit
def _extend_window(
    window,
    p_x,
    t0,
    W,
    L,
    m_d,
    D: tl.constexpr,
    KS: tl.constexpr,
    U: tl.constexpr,
    BD: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """The neighbourhoods of the U pixels from t0, U + KS - 1 pixels of KS lines; and the window U pixels further."""
    rows = ()
    next_window = ()
    for i in tl.static_range(KS):
        new = _read_rows(p_x, t0 + (i - KS // 2) * W + KS // 2, L, m_d, D, U, BD, VECTOR)  # (BD,) each
        rows = rows + keep(window, i * (KS - 1), KS - 1) + new
        next_window = next_window + keep(rows, i * (U + KS - 1) + U, KS - 1)
    return rows, next_window


@triton.jit
def _read_taps(p_weight, o_d, m_d, KS: tl.constexpr, MIRRORED: tl.constexpr):
    """The taps `(BD,)` of `(D, 1, KS, KS)`, row by row; MIRRORED: the last first."""
    taps = ()
    for i in tl.static_range(KS * KS):
        tap = KS * KS - 1 - i if MIRRORED else i
        taps = taps + (tl.load(p_weight + o_d * (KS * KS) + tap, mask=m_d, other=0.0).to(tl.float32),)  # (BD,)
    return taps


@triton.jit
def _read_bias(p_bias, o_d, m_d, BD: tl.constexpr):
    """The bias `(BD,)`, zero where there is none."""
    bias = tl.zeros((BD,), tl.float32)
    if p_bias is not None:
        bias = tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)  # (BD,)
    return bias


@triton.jit
def _columns(t0, W, U: tl.constexpr):
    """The columns of the grid in which U pixels lie."""
    column = t0 % W
    columns = ()
    for _ in tl.static_range(U):
        columns = columns + (column,)
        column = tl.where(column + 1 == W, 0, column + 1)
    return columns


@triton.jit
def _inside(column, i, W, KS: tl.constexpr):
    """Whether column `i` of the neighbourhood of a pixel exists; lines outside the grid are read as zero."""
    return column >= KS // 2 - i if i < KS // 2 else column < W - (i - KS // 2)


@triton.jit
def _convolve_rows(rows, taps, bias, columns, W, KS: tl.constexpr, U: tl.constexpr):
    """The convolution at U pixels, as rows."""
    zs = ()
    for t in tl.static_range(U):
        z = bias
        for j in tl.static_range(KS):
            part = rows[t + j] * taps[j]
            for i in tl.static_range(1, KS):
                part = tl.fma(rows[i * (U + KS - 1) + t + j], taps[i * KS + j], part)
            z += part if j == KS // 2 else tl.where(_inside(columns[t], j, W, KS), part, 0.0)
        zs = zs + (z,)
    return zs


@triton.jit(do_not_specialize=['H', 'W', 'T'])
def _conv_silu_fwd(
    p_x,
    p_weight,
    p_bias,
    p_y,
    H,
    W,
    T,
    D: tl.constexpr,
    KS: tl.constexpr,
    U: tl.constexpr,
    BD: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """T pixels of `y (B, H, W, D) = silu(conv(x) + bias)`; without a bias its pointer is None."""
    L = H * W
    i_b, i_run, o_d, m_d = program_of_run(L, T, D, BD)
    p_x += i_b * L * D + o_d
    p_y += i_b * L * D + o_d
    begin = i_run * T
    end = tl.minimum(L, begin + T)
    taps = _read_taps(p_weight, o_d, m_d, KS, False)  # (BD,) each
    bias = _read_bias(p_bias, o_d, m_d, BD)  # (BD,)
    window = _read_window(p_x, begin, W, L, m_d, D, KS, U, BD, VECTOR)  # (BD,) each
    for t0 in range(begin, end, U):
        rows, window = _extend_window(window, p_x, t0, W, L, m_d, D, KS, U, BD, VECTOR)
        ys = ()
        zs = _convolve_rows(rows, taps, bias, _columns(t0, W, U), W, KS, U)
        for i in tl.static_range(U):
            ys = ys + (silu(zs[i]),)
        _write_rows(p_y, t0, end, ys, m_d, D, U, BD, VECTOR)


@triton.jit(do_not_specialize=['H', 'W', 'T'])
def _conv_dx(
    p_dz,
    p_weight,
    p_dx,
    H,
    W,
    T,
    D: tl.constexpr,
    KS: tl.constexpr,
    U: tl.constexpr,
    BD: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """T pixels of the convolution's adjoint: `dx (B, H, W, D)` is dz convolved with the mirrored taps."""
    L = H * W
    i_b, i_run, o_d, m_d = program_of_run(L, T, D, BD)
    p_dz += i_b * L * D + o_d
    p_dx += i_b * L * D + o_d
    begin = i_run * T
    end = tl.minimum(L, begin + T)
    taps = _read_taps(p_weight, o_d, m_d, KS, True)  # (BD,) each
    zero = tl.zeros((BD,), tl.float32)
    window = _read_window(p_dz, begin, W, L, m_d, D, KS, U, BD, VECTOR)  # (BD,) each
    for t0 in range(begin, end, U):
        rows, window = _extend_window(window, p_dz, t0, W, L, m_d, D, KS, U, BD, VECTOR)
        dxs = _convolve_rows(rows, taps, zero, _columns(t0, W, U), W, KS, U)
        _write_rows(p_dx, t0, end, dxs, m_d, D, U, BD, VECTOR)


@triton.jit
def _add_taps(sums, dz, rows, t: tl.constexpr, column, W, KS: tl.constexpr, U: tl.constexpr):
    """Add what `dz (BD,)` of pixel t, in a column of the grid, gives the gradient of every tap and of the bias."""
    parts = ()
    for j in tl.static_range(KS):
        parts = parts + (dz if j == KS // 2 else tl.where(_inside(column, j, W, KS), dz, 0.0),)
    next_sums = ()
    for i in tl.static_range(KS * KS):
        row = rows[i // KS * (U + KS - 1) + t + i % KS]
        next_sums = next_sums + (tl.fma(parts[i % KS], row, sums[i]),)
    return next_sums + (sums[KS * KS] + dz,)


@triton.jit(do_not_specialize=['H', 'W', 'T'])
def _conv_silu_bwd(
    p_dy,
    p_x,
    p_weight,
    p_bias,
    p_dz,
    p_sums,
    H,
    W,
    T,
    D: tl.constexpr,
    KS: tl.constexpr,
    U: tl.constexpr,
    BD: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """T pixels of `dz (B, H, W, D) = dy * silu'(z)`, where `z = conv(x) + bias` is found again.

    `sums (B, runs, KS * KS + 1, D)`: a program's sum of dz times what each tap read and, last, of dz.
    """
    L = H * W
    i_b, i_run, o_d, m_d = program_of_run(L, T, D, BD)
    p_x += i_b * L * D + o_d
    p_dy += i_b * L * D + o_d
    p_dz += i_b * L * D + o_d
    begin = i_run * T
    end = tl.minimum(L, begin + T)
    taps = _read_taps(p_weight, o_d, m_d, KS, False)  # (BD,) each
    bias = _read_bias(p_bias, o_d, m_d, BD)  # (BD,)
    window = _read_window(p_x, begin, W, L, m_d, D, KS, U, BD, VECTOR)  # (BD,) each
    sums = ()
    for _ in tl.static_range(KS * KS + 1):
        sums = sums + (tl.zeros((BD,), tl.float32),)
    for t0 in range(begin, end, U):
        rows, window = _extend_window(window, p_x, t0, W, L, m_d, D, KS, U, BD, VECTOR)
        columns = _columns(t0, W, U)
        zs = _convolve_rows(rows, taps, bias, columns, W, KS, U)
        dys = _read_rows(p_dy, t0, end, m_d, D, U, BD, VECTOR)  # (BD,) each, zero past the end: adds nothing
        dzs = ()
        for t in tl.static_range(U):
            dz = dys[t] * silu_slope(zs[t])
            dzs = dzs + (dz,)
            sums = _add_taps(sums, dz, rows, t, columns[t], W, KS, U)
        _write_rows(p_dz, t0, end, dzs, m_d, D, U, BD, VECTOR)
    p_sums += (i_b * tl.cdiv(L, T) + i_run) * ((KS * KS + 1) * D) + o_d
    for i in tl.static_range(KS * KS + 1):
        tl.store(p_sums + i * D, sums[i], mask=m_d)


def _check_size(x) -> None:
    if x.shape[1:].numel() >= 1 << 31:
        raise ValueError(
            f'depthwise_conv_silu: x has shape {tuple(x.shape)}; the triton backend indexes an image with 32 bits, '
            "H*W*D must stay below 2**31; use smaller images or backend='torch'"
        )


def block_of(channels: int) -> int:
    """Channels of a program, one warp: none of its lanes is wasted."""
    return 64 if channels % 64 == 0 else 32


class _Plan(NamedTuple):
    """How many runs of pixels all images have, launches, None for no images, and their numbers."""

    runs: int
    fwd: Launch | None
    bwd: Launch | None
    dx: Launch | None
    collect: Launch | None
    numbers: dict[str, int]


@planned
def _plan(shape, size: int, dtypes, device, programs: int) -> _Plan:
    batch, height, width, channels = shape
    if batch == 0:
        return _Plan(0, None, None, None, None, {})
    block = block_of(channels)
    blocks = triton.cdiv(channels, block)
    part = U * triton.cdiv(max(share(height * width, batch * blocks, device), SHORTEST_RUN), U)
    runs = batch * triton.cdiv(height * width, part)
    shared = dict(KS=size, D=channels, U=U, BD=block, VECTOR=block // 32, num_warps=1)
    return _Plan(
        runs,
        fwd=Launch(_conv_silu_fwd, runs * blocks, **shared),
        bwd=Launch(_conv_silu_bwd, runs * blocks, **shared),
        dx=Launch(_conv_dx, runs * blocks, **shared),
        collect=collecting(1, channels, size * size, 1),
        numbers=dict(H=height, W=width, T=part),
    )


def _plan_of(x, weight, bias, *others) -> _Plan:
    _check_size(x)
    dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype, *others
    return _plan(x.shape, weight.shape[3], dtypes, x.device, programs_of_runs(x.device))


def forward(x, weight, bias):
    """See `mmvmamba.kernels.depthwise_conv_silu`; the result has the dtype of x."""
    x, weight, bias = dense(x), dense(weight), None if bias is None else dense(bias)
    plan = _plan_of(x, weight, bias)
    y = torch.empty_like(x)
    if plan.fwd is not None:
        with on_device(x):
            plan.fwd.start(dict(p_x=x, p_weight=weight, p_bias=bias, p_y=y) | plan.numbers)
    return y


def backward(dy, x, weight, bias):
    """Gradients in the order of `forward`'s tensors; that of an absent bias is empty."""
    dy, x, weight, bias = dense(dy), dense(x), dense(weight), None if bias is None else dense(bias)
    plan = _plan_of(x, weight, bias, dy.dtype)
    dz, dx = torch.empty_like(x), torch.empty_like(x)
    if plan.bwd is None:
        return dx, torch.zeros_like(weight), torch.zeros_like(weight[:, 0, 0, 0])[: None if bias is not None else 0]
    sums = x.new_empty((plan.runs, weight.shape[3] ** 2 + 1, x.shape[3]), dtype=torch.float32)
    dweight = sums.new_empty(weight.shape)
    dbias = sums.new_empty(x.shape[3])
    with on_device(x):
        plan.bwd.start(dict(p_dy=dy, p_x=x, p_weight=weight, p_bias=bias, p_dz=dz, p_sums=sums) | plan.numbers)
        plan.dx.start(dict(p_dz=dz, p_weight=weight, p_dx=dx) | plan.numbers)
        plan.collect((sums, sums, dweight, dbias, dweight), plan.runs)
    return dx, dweight, sums.new_empty(0) if bias is None else dbias
