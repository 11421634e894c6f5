"""What follows the scan, in one pass: sum of the routes, layer normalisation and, where there is one, the gate.

The forward pass reads every route's buffer once and in training keeps their sum; the backward pass needs that alone.
"""

import math

import torch
import triton
import triton.language as tl

from ..shared_triton.launch import Launch, on_device, planned
from ..shared_triton.numerics import is_cuda, launch_options, multiprocessors, silu, silu_slope

_TILE, WARPS = 2048, 4
"""Numbers a program works on together, and its warps."""


@triton.jit(do_not_specialize=['rows'])
def _normalise(
    p_routes, p_weight, p_bias, p_gate, p_sum, p_y, rows, eps,
    K: tl.constexpr, D: tl.constexpr, GATED: tl.constexpr, KEEP: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """`routes (K, rows, D)` to their sum (only if KEEP) and its normalisation, `(rows, D)` each."""
    o_r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_d = tl.arange(0, BD)
    m_d = o_d < D
    mask = (o_r < rows)[:, None] & m_d[None, :]
    offset = o_r[:, None] * D + o_d[None, :]
    total = tl.zeros((BR, BD), tl.float32)
    for _ in tl.static_range(K):
        total += tl.load(p_routes + offset, mask=mask, other=0.0).to(tl.float32)
        p_routes += tl.cast(rows, tl.int64) * D
    if KEEP:
        tl.store(p_sum + offset, total.to(p_sum.dtype.element_ty), mask=mask)
    mean = tl.sum(total, axis=1) / D
    centred = tl.where(m_d[None, :], total - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / D + eps)
    weight = tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    bias = tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    y = centred * scale[:, None] * weight[None, :] + bias[None, :]
    if GATED:
        gate = tl.load(p_gate + offset, mask=mask, other=0.0).to(tl.float32)
        y *= silu(gate)
    tl.store(p_y + offset, y.to(p_y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['rows', 'share'])
def _differentiate(
    p_dy, p_sum, p_weight, p_bias, p_gate, p_dsum, p_sums, p_dgate, rows, share, eps,
    D: tl.constexpr, GATED: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradients for a run of `share` tiles of rows; `sums (runs, 2, D)` are those of weight and bias."""
    i_run = tl.program_id(0)
    o_d = tl.arange(0, BD)
    m_d = o_d < D
    weight = tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    bias = tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    dweight = tl.zeros((BD,), tl.float32)
    dbias = tl.zeros((BD,), tl.float32)
    for i in range(i_run * share, (i_run + 1) * share):
        o_r = tl.cast(i, tl.int64) * BR + tl.arange(0, BR)
        mask = (o_r < rows)[:, None] & m_d[None, :]
        offset = o_r[:, None] * D + o_d[None, :]
        total = tl.load(p_sum + offset, mask=mask, other=0.0).to(tl.float32)
        mean = tl.sum(total, axis=1) / D
        centred = tl.where(m_d[None, :], total - mean[:, None], 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / D + eps)
        normed = centred * scale[:, None]
        g = tl.load(p_dy + offset, mask=mask, other=0.0).to(tl.float32)
        if GATED:
            gate = tl.load(p_gate + offset, mask=mask, other=0.0).to(tl.float32)
            dgate = g * (normed * weight[None, :] + bias[None, :]) * silu_slope(gate)
            tl.store(p_dgate + offset, dgate.to(p_dgate.dtype.element_ty), mask=mask)
            g *= silu(gate)
        dweight += tl.sum(g * normed, axis=0)
        dbias += tl.sum(g, axis=0)
        g = g * weight[None, :]
        along = tl.sum(g * normed, axis=1) / D
        dsum = (g - (tl.sum(g, axis=1) / D)[:, None] - normed * along[:, None]) * scale[:, None]
        tl.store(p_dsum + offset, dsum.to(p_dsum.dtype.element_ty), mask=mask)
    p_sums += i_run * (2 * D) + o_d
    tl.store(p_sums, dweight, mask=m_d)
    tl.store(p_sums + D, dbias, mask=m_d)


def tiling(channels: int) -> dict:
    """Rows that a program works on together, and their channels."""
    block = triton.next_power_of_2(channels)
    return dict(BD=block, BR=max(1, _TILE // block))


@planned
def _normalising(shape, channels: int, dtypes, device, gated: bool, keep: bool) -> tuple[int, Launch]:
    """Rows, and the launch of `_normalise`."""
    rows, blocks = math.prod(shape[1:]) // channels, tiling(channels)
    return rows, Launch(
        _normalise,
        triton.cdiv(rows, blocks['BR']),
        **dict(K=shape[0], D=channels, GATED=gated, KEEP=keep, **blocks),
        **launch_options(WARPS, is_cuda(device)),
    )


def normalise(routes, weight, bias, gate, eps, dtype, keep):
    """Sum and normalise.

    Args:
        routes: `(K, B, L, D)`, all of one dtype.
        weight, bias: `(D,)`.
        gate: as many numbers as the result, contiguous; or None.
        eps: added to the variance.
        dtype: of the result.
        keep: whether to return the sum.

    Returns:
        The sum in the dtype of the routes, or an empty tensor, and the result; `(B, L, D)` each.
    """
    shape = routes.shape
    y = routes.new_empty(shape[1:], dtype=dtype)
    total = routes.new_empty(shape[1:] if keep else 0)
    dtypes = routes.dtype, weight.dtype, bias.dtype, dtype
    rows, launch = _normalising(shape, shape[3], dtypes, routes.device, gate is not None, keep)
    if rows:
        with on_device(routes):
            launch((routes, weight, bias, y if gate is None else gate, total if keep else y, y), rows, eps)
    return total, y


@planned
def _differentiating(rows: int, channels: int, dtypes, device, gated: bool, machine: int) -> tuple[int, int, Launch]:
    """Runs, tiles of a run, and the launch of `_differentiate`."""
    blocks = tiling(channels)
    tiles = triton.cdiv(rows, blocks['BR'])
    runs = max(1, min(tiles, 4 * machine))
    options = launch_options(WARPS, is_cuda(device))
    share = triton.cdiv(tiles, runs)
    return runs, share, Launch(_differentiate, runs, D=channels, GATED=gated, **blocks, **options)


def normalise_backward(dy, total, weight, bias, gate, eps):
    """Gradients of the sum (in its dtype), of weight and bias (float32) and of the gate (or an empty tensor)."""
    channels = total.shape[-1]
    rows = total.numel() // channels
    dtypes = dy.dtype, total.dtype, weight.dtype, bias.dtype
    device = total.device
    runs, share, launch = _differentiating(rows, channels, dtypes, device, gate is not None, multiprocessors(device))
    dsum = torch.empty_like(total)
    dgate = total.new_empty(0) if gate is None else torch.empty_like(gate)
    sums = total.new_empty((runs, 2, channels), dtype=torch.float32)
    if rows:
        with on_device(total):
            launch(
                (dy, total, weight, bias, total if gate is None else gate, dsum, sums, dsum if gate is None else dgate),
                *(rows, share, eps),
            )
    dweight, dbias = sums.sum(0) if rows else sums.new_zeros((2, channels))
    return dsum, dweight, dbias, dgate
