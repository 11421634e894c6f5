"""SS2D and its normalisation as a chain of PyTorch calls, every route in memory: a peer for timings, in no network.

So the published code is composed. Its scan can be PyTorch's (`scan`) or a kernel of somebody else's.
"""

import torch
from torch.nn import functional as F

CHUNK = 16
"""Positions that are walked one after another."""


def ss2d_norm(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, norm_weight, norm_bias, scan):
    """What `mmvmamba.kernels.ss2d_norm` computes with routes 'cross', without a gate.

    Args:
        x: `(B, D, H, W)`, the layout of the published code; the other tensors as there.
        scan: a selective scan, called as `scan` below is.

    Returns:
        `(B, H, W, D)` in the dtype of x.
    """
    channels, height, width = x.shape[1:]
    states, rank = As.shape[1], dt_projs_weight.shape[2]
    rows, columns = x.flatten(2), x.transpose(2, 3).flatten(2)
    xs = torch.stack([rows, columns, rows.flip(2), columns.flip(2)], dim=1)  # (B, 4, D, L)
    projected = torch.einsum('bkdl,kcd->bkcl', xs, x_proj_weight.to(x.dtype))
    dts, Bs, Cs = (t.contiguous() for t in projected.split([rank, states, states], dim=2))
    delta = torch.einsum('bkrl,kdr->bkdl', dts, dt_projs_weight.to(x.dtype))
    ys = scan(xs.flatten(1, 2), delta.flatten(1, 2), As, Bs, Cs, Ds, dt_projs_bias.flatten())
    ys = ys.unflatten(1, (4, channels))
    ys = ys[:, :2] + ys[:, 2:].flip(3)
    y = ys[:, 0] + ys[:, 1].unflatten(2, (width, height)).transpose(2, 3).flatten(2)
    y = F.layer_norm(y.transpose(1, 2).float(), (channels,), norm_weight, norm_bias)
    return y.to(x.dtype).unflatten(1, (height, width))


def scan(u, delta, A, Bs, Cs, Ds, bias):
    """`mmvmamba.kernels.selective_scan` in differentiable PyTorch calls; `(B, 4D, L)` float32."""
    channels = A.shape[0] // Bs.shape[1]
    u = u.float()
    dt = F.softplus(delta.float() + bias[:, None])
    y = Ds[:, None] * u
    for n in range(A.shape[1]):
        B_n, C_n = (t[:, :, n].float().repeat_interleave(channels, dim=1) for t in (Bs, Cs))
        a, b = torch.exp(dt * A[:, n, None]), dt * u * B_n
        h = recurrence(a.transpose(1, 2).contiguous(), b.transpose(1, 2).contiguous())
        y = y + h.transpose(1, 2) * C_n
    return y


def recurrence(a, b):
    """`h_t = a_t * h_{t-1} + b_t` along dim 1 of `(B, L, C)`: chunks side by side, their ends by this function."""
    length = a.shape[1]
    if length == 1:
        return b
    a, b = (F.pad(t, (0, 0, 0, -length % CHUNK)).unflatten(1, (-1, CHUNK)) for t in (a, b))
    decay, local = a[:, :, 0], b[:, :, 0]
    for t in range(1, CHUNK):
        decay, local = a[:, :, t] * decay, a[:, :, t] * local + b[:, :, t]
    h = F.pad(recurrence(decay, local)[:, :-1], (0, 0, 1, 0))
    states = []
    for t in range(CHUNK):
        h = a[:, :, t] * h + b[:, :, t]
        states.append(h)
    return torch.stack(states, dim=2).flatten(1, 2)[:, :length]


def mamba_scan():
    """The scan of the package mamba_ssm; ImportError where it is not installed."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def run(u, delta, A, Bs, Cs, Ds, bias):
        return selective_scan_fn(u, delta, A, Bs, Cs, Ds, delta_bias=bias, delta_softplus=True).float()

    return run


def vmamba_scan():
    """The scan of VMamba's published CUDA extension; ImportError where it is not installed."""
    import selective_scan_cuda_oflex as extension

    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            y, states, *_ = extension.fwd(*tensors, True, 1, True)  # softplus, rows a block, float32 out
            ctx.save_for_backward(*tensors, states)
            return y

        @staticmethod
        def backward(ctx, dy):
            *tensors, states = ctx.saved_tensors
            grads = extension.bwd(*tensors, dy.contiguous(), states, True, 1)
            return tuple(grads[: len(tensors)])

    return Scan.apply


PEERS = {'mamba_ssm': mamba_scan, 'selective_scan_cuda_oflex': vmamba_scan}
"""Packages with a scan of their own, and how to get it."""
