"""The pooled scan in the operators that exporters know; both directions are scanned together.

Pooled lines are as few as the steps of a chunked scan would be, so they are one chunk. Without pooling the chunks are
the lines.
"""

import torch
from torch.nn import functional as F

from ..arguments import compute_dtype
from ..selective_scan.decomposed import chunked_scan
from ..selective_scan.torch_blocked import time_step


def _convolved(tokens, weight, bias):
    """Causal depthwise convolution and SiLU, `(B, L, D)` to `(B, L, D)`."""
    padded = F.pad(tokens.mT, (int(weight.shape[2]) - 1, 0))
    return F.silu(F.conv1d(padded, weight, bias, groups=weight.shape[0])).mT


def _scanned(s, x_proj_weight, dt_weight, dt_bias, A):
    """Projections and scan of `(T, 2, B, S, D)`, parameters of both directions stacked."""
    states, rank = A.shape[2], dt_weight.shape[2]
    dts, Bs, Cs = (s @ x_proj_weight.mT[:, None]).split([rank, states, states], dim=4)
    dt = time_step(dts @ dt_weight.mT[:, None] + dt_bias[:, None, None], softplus=True)
    return chunked_scan(s, dt, A.mT, Bs, Cs)


def forward(xz, directions, norm_weight, norm_bias, axis, pool, scaling, eps):
    """See `mmvmamba.kernels.pooled_scan`."""
    dtype = compute_dtype(xz)
    lines = (xz.transpose(1, 2) if axis == 'column' else xz).to(dtype)
    x, z = lines.chunk(2, dim=3)  # (B, O, I, D)
    convs, biases, *projections, Ds = zip(*([t.to(dtype) for t in way] for way in directions), strict=True)
    tokens = x.flatten(1, 2)
    u = torch.stack([_convolved(t, convs[i], biases[i]) for i, t in enumerate((tokens, tokens.flip(1)))])
    u = u.unflatten(2, x.shape[1:3])  # (2, B, O, I, D)
    projections = [torch.stack(pair) for pair in projections]
    if pool is None:
        v = _scanned(u.permute(3, 0, 1, 2, 4), *projections).permute(1, 2, 3, 0, 4)
    else:
        pooled = scaling * (u.mean(3) if pool == 'mean' else u.amax(3))
        v = _scanned(pooled.permute(2, 0, 1, 3)[:, :, :, None], *projections).permute(1, 2, 0, 3, 4)
    forth, back = (v + torch.stack(Ds)[:, None, None, None] * u).unbind(0)
    y = (forth + back.flip(1, 2)) / 2
    if norm_weight is not None:
        y = F.layer_norm(y, y.shape[3:], norm_weight.to(dtype), norm_bias.to(dtype), eps)
    y = (y * F.silu(z)).to(xz.dtype)
    return y.transpose(1, 2) if axis == 'column' else y
