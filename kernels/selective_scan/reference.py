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
    batch, channels = u.shape[:2]
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
    # unbind, not an index a step: the gradient of each index would be a tensor of the whole length
    for u_t, step, B, C in zip(*(t.unbind(-1) for t in (u_grouped, delta_grouped, Bs, Cs)), strict=True):
        step, B, C = step[..., None], B[:, :, None], C[:, :, None]  # (B, K, D, 1), (B, K, 1, N) twice
        h = torch.exp(step * A) * h + step * B * u_t[..., None]
        ys.append((h * C).sum(-1))
    y = torch.stack(ys, dim=-1).flatten(1, 2)
    if Ds is not None:
        y = y + Ds.to(dtype)[:, None] * u
    return y
