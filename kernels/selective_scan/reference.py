"""The selective scan, one position after another: the truth that every backend is compared with.

Plain differentiable PyTorch; gradients come from autograd, so no hand-written adjoint can hide an error here.
"""

import torch
from torch.nn import functional as F

from ..arguments import compute_dtype


def selective_scan(u, delta, A, Bs, Cs, Ds, delta_bias, softplus):
    """See `mmvmamba.kernels.selective_scan`; here `Bs, Cs` are always `(B, K, N, L)`."""
    dtype = compute_dtype(u)
    u, delta, A, Bs, Cs = (t.to(dtype) for t in (u, delta, A, Bs, Cs))
    batch, channels, length = u.shape
    groups, states = Bs.shape[1:3]
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None]
    if softplus:
        delta = F.softplus(delta)

    def per_group(t):  # (B, K*D, ...) -> (B, K, D, ...): the channels of one route share its Bs and Cs
        return t.unflatten(1, (groups, channels // groups))

    u_grouped, delta_grouped = per_group(u), per_group(delta)
    A = A.view(groups, channels // groups, states)
    h = u.new_zeros(batch, groups, channels // groups, states)
    ys = []
    for t in range(length):
        step = delta_grouped[..., t, None]  # (B, K, D, 1)
        h = torch.exp(step * A) * h + step * Bs[:, :, None, :, t] * u_grouped[..., t, None]
        ys.append((h * Cs[:, :, None, :, t]).sum(-1))
    y = torch.stack(ys, dim=-1).flatten(1, 2)
    if Ds is not None:
        y = y + Ds.to(dtype)[:, None] * u
    return y
