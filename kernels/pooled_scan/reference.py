"""The pooled scan step by step: each direction's sequence written out, convolved, pooled, scanned and expanded.

Plain differentiable PyTorch; gradients come from autograd, so no hand-written adjoint can hide an error here.
"""

import torch
from torch.nn import functional as F

from ..arguments import compute_dtype
from ..selective_scan.reference import selective_scan


def pooled_scan(xz, directions, norm_weight, norm_bias, axis, pool, scaling, eps):
    """See `mmvmamba.kernels.pooled_scan`."""
    dtype = compute_dtype(xz)
    grid = xz.to(dtype).transpose(1, 2) if axis == 'column' else xz.to(dtype)  # (B, lines, line, 2D)
    lines = grid.shape[1]
    x, z = grid.flatten(1, 2).chunk(2, dim=2)  # (B, L, D)
    forth, back = (tuple(t.to(dtype) for t in direction) for direction in directions)
    y = (_direction(x, *forth, lines, pool, scaling) + _direction(x.flip(1), *back, lines, pool, scaling).flip(1)) / 2
    if norm_weight is not None:
        y = F.layer_norm(y, y.shape[2:], norm_weight.to(dtype), norm_bias.to(dtype), eps)
    y = (y * F.silu(z)).unflatten(1, (lines, -1)).to(xz.dtype)
    return y.transpose(1, 2) if axis == 'column' else y


def _direction(x, conv_weight, conv_bias, x_proj_weight, dt_weight, dt_bias, A, Ds, lines, pool, scaling):
    """One direction over `(B, L, D)`, in the order of its sequence."""
    channels, _, width = conv_weight.shape
    states, rank = A.shape[1], dt_weight.shape[1]
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    u = F.silu(F.conv1d(padded, conv_weight, conv_bias, groups=channels))  # (B, D, L)
    by_line = u.unflatten(2, (lines, -1))
    if pool == 'mean':
        short = scaling * by_line.mean(3)
    elif pool == 'max':
        short = scaling * by_line.amax(3)
    else:
        short = u
    projected = torch.einsum('bdl,cd->bcl', short, x_proj_weight)
    dts, Bs, Cs = projected.split([rank, states, states], dim=1)
    delta = torch.einsum('brl,dr->bdl', dts, dt_weight)
    y = selective_scan(short, delta, A, Bs[:, None], Cs[:, None], None, dt_bias, True)
    if pool is not None:
        y = y.repeat_interleave(by_line.shape[3], dim=2)
    return (y + Ds[:, None] * u).transpose(1, 2)
