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
def merge_norm(
    p_routes, p_weight, p_bias, p_gate, p_sum, p_y, rows, eps, K: tl.constexpr, D: tl.constexpr, BR: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """`s = sum_k routes_k`, `y = ((s - mean s) / sqrt(var s + eps) weight + bias) silu(gate)`; `(rows, D)` each.

    `routes (K, rows, D)`. Absent: `gate` is one, `sum` is not kept.
    """
    o_r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_d = tl.arange(0, BD)
    m_d = o_d < D
    mask = (o_r < rows)[:, None] & m_d[None, :]
    offset = o_r[:, None] * D + o_d[None, :]
    total = tl.zeros((BR, BD), tl.float32)
    for _ in tl.static_range(K):
        total += tl.load(p_routes + offset, mask=mask, other=0.0).to(tl.float32)  # (BR, BD)
        p_routes += tl.cast(rows, tl.int64) * D
    if p_sum is not None:
        tl.store(p_sum + offset, total.to(p_sum.dtype.element_ty), mask=mask)
    mean = tl.sum(total, axis=1) / D
    centred = tl.where(m_d[None, :], total - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / D + eps)
    weight = tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)  # (BD,)
    bias = tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)  # (BD,)
    y = centred * scale[:, None] * weight[None, :] + bias[None, :]
    if p_gate is not None:
        gate = tl.load(p_gate + offset, mask=mask, other=0.0).to(tl.float32)  # (BR, BD)
        y *= silu(gate)
    tl.store(p_y + offset, y.to(p_y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['rows', 'share'])
def merge_norm_bwd(
    p_dy, p_sum, p_weight, p_bias, p_gate, p_dsum, p_sums, p_dgate, rows, share, eps, D: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradients for a run of `share` tiles of rows, with `n = (s - mean s) / sqrt(var s + eps)`, `g = dy silu(gate)`:

    `ds = (w g - mean(w g) - n mean(w g n)) / sqrt(var s + eps)`, `dgate = dy (n w + bias) silu'(gate)`, and to
    `sums (runs, 2, D)` those of weight and bias, `sum g n` and `sum g`. Every route's gradient is ds.
    """
    i_run = tl.program_id(0)
    o_d = tl.arange(0, BD)
    m_d = o_d < D
    weight = tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)  # (BD,)
    bias = tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)  # (BD,)
    dweight = tl.zeros((BD,), tl.float32)
    dbias = tl.zeros((BD,), tl.float32)
    for i in range(i_run * share, (i_run + 1) * share):
        o_r = tl.cast(i, tl.int64) * BR + tl.arange(0, BR)
        mask = (o_r < rows)[:, None] & m_d[None, :]
        offset = o_r[:, None] * D + o_d[None, :]
        total = tl.load(p_sum + offset, mask=mask, other=0.0).to(tl.float32)  # (BR, BD)
        mean = tl.sum(total, axis=1) / D
        centred = tl.where(m_d[None, :], total - mean[:, None], 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / D + eps)
        normed = centred * scale[:, None]
        g = tl.load(p_dy + offset, mask=mask, other=0.0).to(tl.float32)  # (BR, BD)
        if p_gate is not None:
            gate = tl.load(p_gate + offset, mask=mask, other=0.0).to(tl.float32)  # (BR, BD)
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
def _normalising(shape, channels: int, dtypes, device, keep: bool) -> tuple[int, Launch]:
    """Rows, and the launch of `merge_norm`; `dtypes` and `keep` say which tensors it gets."""
    rows, blocks = math.prod(shape[1:]) // channels, tiling(channels)
    return rows, Launch(
        merge_norm,
        triton.cdiv(rows, blocks['BR']),
        **dict(K=shape[0], D=channels, **blocks),
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
    dtypes = routes.dtype, weight.dtype, bias.dtype, dtype, None if gate is None else gate.dtype
    rows, launch = _normalising(shape, shape[3], dtypes, routes.device, keep)
    if rows:
        with on_device(routes):
            tensors = dict(p_routes=routes, p_weight=weight, p_bias=bias, p_gate=gate, p_y=y)
            launch.start(tensors | dict(p_sum=total if keep else None, rows=rows, eps=eps))
    return total, y


@planned
def _differentiating(rows: int, channels: int, dtypes, device, machine: int) -> tuple[int, int, Launch]:
    """Runs, tiles of a run, and the launch of `merge_norm_bwd`."""
    blocks = tiling(channels)
    tiles = triton.cdiv(rows, blocks['BR'])
    runs = max(1, min(tiles, 4 * machine))
    options = launch_options(WARPS, is_cuda(device))
    share = triton.cdiv(tiles, runs)
    return runs, share, Launch(merge_norm_bwd, runs, D=channels, **blocks, **options)


def normalise_backward(dy, total, weight, bias, gate, eps):
    """Gradients of the sum (in its dtype), of weight and bias (float32) and of the gate (or an empty tensor)."""
    channels = total.shape[-1]
    rows = total.numel() // channels
    dtypes = dy.dtype, total.dtype, weight.dtype, bias.dtype, None if gate is None else gate.dtype
    device = total.device
    runs, share, launch = _differentiating(rows, channels, dtypes, device, multiprocessors(device))
    dsum = torch.empty_like(total)
    dgate = total.new_empty(0) if gate is None else torch.empty_like(gate)
    sums = total.new_empty((runs, 2, channels), dtype=torch.float32)
    if rows:
        with on_device(total):
            inputs = dict(p_dy=dy, p_sum=total, p_weight=weight, p_bias=bias, p_gate=gate, eps=eps)
            outputs = dict(p_dsum=dsum, p_sums=sums, p_dgate=None if gate is None else dgate)
            launch.start(inputs | outputs | dict(rows=rows, share=share))
    dweight, dbias = sums.sum(0) if rows else sums.new_zeros((2, channels))
    return dsum, dweight, dbias, dgate
