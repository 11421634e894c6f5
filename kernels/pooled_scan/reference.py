"""The pooled scan step by step: each direction's sequence written out, convolved, pooled, scanned and expanded.

Plain differentiable PyTorch; gradients come from autograd, so no hand-written adjoint can hide an error here.
"""

import torch
from torch.nn import functional as F

from ..arguments import compute_dtype
from ..selective_scan.reference import selective_scan


def pooled_scan(xz, directions, norm_weight, norm_bias, axis, pool, scaling, eps, planes='inner'):
    """See `mmvmamba.kernels.pooled_scan`."""
    dtype = compute_dtype(xz)
    grid = xz.to(dtype)
    if axis == 'column':
        grid = grid.transpose(1, 2)
    first = grid.ndim == 5 and planes == 'outer'
    if first:
        grid = grid.movedim(3, 1)
    shape = grid.shape[1:-1]  # (lines, line); with planes (lines, line, K) or (K, lines, line)
    along = 3 if first else 2  # the axis that is pooled, of (B, *shape, D)

    def shorten(u):
        u = u.unflatten(1, shape)
        return scaling * (u.mean(along) if pool == 'mean' else u.amax(along)).flatten(1, -2)

    def expand(v):
        return v.unflatten(1, shape[: along - 1] + shape[along:]).unsqueeze(along).expand(-1, *shape, -1).flatten(1, -2)

    way = (shorten, expand) if pool else (_same, _same)
    y = _both(grid.flatten(1, -2), directions, norm_weight, norm_bias, eps, way, way)
    y = y.unflatten(1, shape).to(xz.dtype)
    if first:
        y = y.movedim(1, 3)
    return y.transpose(1, 2) if axis == 'column' else y


def pooled_scan_kept(xz, places, directions, norm_weight, norm_bias, height, width, axis, scaling, eps, consistent):
    """See `mmvmamba.kernels.pooled_scan_kept`."""
    rows, columns = places // width, places % width
    line, in_line = (rows, columns) if axis == 'row' else (columns, rows)
    lines, length = (height, width) if axis == 'row' else (width, height)
    order = torch.argsort(line * length + in_line, dim=1)
    line = line.gather(1, order)
    tokens = _taken(xz.to(compute_dtype(xz)), order)

    def way(line):  # `line (B, M)` of each token, in the order of a direction's sequence
        def shorten(u):
            sums = u.new_zeros(u.shape[0], lines, u.shape[2])
            return scaling / length * sums.scatter_add(1, line[..., None].expand(u.shape), u)

        return shorten, lambda v: _taken(v, line)

    # the published rule reads the list of lines from its start in both directions
    back = (lines - 1 - line).flip(1) if consistent else line
    y = _both(tokens, directions, norm_weight, norm_bias, eps, way(line), way(back))
    return _taken(y, torch.argsort(order, dim=1)).to(xz.dtype)


def _taken(t, index):
    """Rows of `(B, M, D)` by number, `index (B, S)`, as `(B, S, D)`."""
    return t.gather(1, index[..., None].expand(-1, -1, t.shape[2]))


def _same(u):
    return u


def _both(xz, directions, norm_weight, norm_bias, eps, forth, back):
    """Both directions over `(B, L, 2D)`, norm and gate; each direction with its `(shorten, expand)`."""
    x, z = xz.chunk(2, dim=2)
    first, second = (tuple(t.to(xz.dtype) for t in direction) for direction in directions)
    y = (_direction(x, *first, *forth) + _direction(x.flip(1), *second, *back).flip(1)) / 2
    if norm_weight is not None:
        y = F.layer_norm(y, y.shape[2:], norm_weight.to(xz.dtype), norm_bias.to(xz.dtype), eps)
    return y * F.silu(z)


def _direction(x, conv_weight, conv_bias, x_proj_weight, dt_weight, dt_bias, A, Ds, shorten, expand):
    """One direction over `(B, L, D)`, in the order of its sequence; `shorten` pools, `expand` gives back to tokens."""
    channels, _, width = conv_weight.shape
    states, rank = A.shape[1], dt_weight.shape[1]
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    u = F.silu(F.conv1d(padded, conv_weight, conv_bias, groups=channels)).transpose(1, 2)  # (B, L, D)
    short = shorten(u).transpose(1, 2)  # (B, D, S)
    projected = torch.einsum('bdl,cd->bcl', short, x_proj_weight)
    dts, Bs, Cs = projected.split([rank, states, states], dim=1)
    delta = torch.einsum('brl,dr->bdl', dts, dt_weight)
    y = selective_scan(short, delta, A, Bs[:, None], Cs[:, None], None, dt_bias, True)
    return expand(y.transpose(1, 2)) + Ds * u
