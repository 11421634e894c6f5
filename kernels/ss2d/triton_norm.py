"""What follows the scan, in one pass: sum of the routes, layer normalisation and, where there is one, the gate.

The forward pass reads every route's buffer once and in training keeps their sum; the backward pass needs that alone.
"""

import torch
import triton
import triton.language as tl

from ..triton_math import is_cuda, launch_options, multiprocessors, silu, silu_slope

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
    p_dy, p_sum, p_weight, p_bias, p_gate, p_dsum, p_dweight, p_dbias, p_dgate, rows, share, eps,
    D: tl.constexpr, GATED: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradients for a run of `share` tiles of rows; `dweight, dbias (runs, D)`."""
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
    tl.store(p_dweight + i_run * D + o_d, dweight, mask=m_d)
    tl.store(p_dbias + i_run * D + o_d, dbias, mask=m_d)


def tiling(channels: int) -> dict:
    """Rows that a program works on together, and their channels."""
    block = triton.next_power_of_2(channels)
    return dict(BD=block, BR=max(1, _TILE // block))


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
    y = torch.empty_like(routes[0], dtype=dtype)
    total = torch.empty_like(routes[0]) if keep else routes.new_empty(0)
    channels = routes.shape[-1]
    rows = y.numel() // channels
    if rows:
        blocks = tiling(channels)
        with torch.cuda.device_of(routes):
            _normalise[(triton.cdiv(rows, blocks['BR']),)](
                *(routes, weight, bias, y if gate is None else gate, total if keep else y, y, rows, eps),
                **dict(K=routes.shape[0], D=channels, GATED=gate is not None, KEEP=keep, **blocks),
                **launch_options(WARPS, is_cuda(y.device)),
            )
    return total, y


def normalise_backward(dy, total, weight, bias, gate, eps):
    """Gradients of the sum (in its dtype), of weight and bias (float32) and of the gate (or an empty tensor)."""
    channels = total.shape[-1]
    rows = total.numel() // channels
    blocks = tiling(channels)
    tiles = triton.cdiv(rows, blocks['BR'])
    runs = max(1, min(tiles, 4 * multiprocessors(total.device)))
    dsum = torch.empty_like(total)
    dgate = total.new_empty(0, dtype=torch.float32) if gate is None else torch.empty_like(gate)
    dweight, dbias = (total.new_zeros((runs, channels), dtype=torch.float32) for _ in range(2))
    if rows:
        with torch.cuda.device_of(total):
            _differentiate[(runs,)](
                *(dy, total, weight, bias, total if gate is None else gate, dsum, dweight, dbias),
                *(dsum if gate is None else dgate, rows, triton.cdiv(tiles, runs), eps),
                **dict(D=channels, GATED=gate is not None, **blocks),
                **launch_options(WARPS, is_cuda(total.device)),
            )
    return dsum, dweight.sum(0), dbias.sum(0), dgate
