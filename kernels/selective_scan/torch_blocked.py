"""The selective scan in vectorised PyTorch: any device, memory linear in L, no more than O(sqrt(L)) calls.

The sequence is cut into S chunks of T positions. All chunks advance together, T steps; a short loop over the chunks
hands their end states on; a second T steps replay with the right start. Nothing is divided by a decay, so
nothing can overflow. State index n is a loop: temporaries do not grow with N.

Layout inside: sequences are `(G, L, D)`, channels last, so that a step reads contiguous runs of channels.
"""

import math

import torch
from torch.nn import functional as F

from ..arguments import compute_dtype

_BLOCK_ELEMENTS = {'cpu': 1 << 22}
_BLOCK_ELEMENTS_ELSEWHERE = 1 << 25
"""Elements of one temporary. Blocks larger than a cache do not run faster on a CPU; a GPU wants wide launches."""


def linear_recurrence(a, b, reverse=False):
    """Solve `h_t = a_t * h_{t-1} + b_t` with `h_{-1} = 0` along dim 1 of `(G, L, D)`; `reverse` runs from the end."""
    length = a.shape[1]
    h = torch.empty_like(b)
    steps = max(1, math.isqrt(length))
    chunks = length // steps
    body = chunks * steps  # the first positions; the rest, shorter than a chunk, is walked step by step
    chunked = [t[:, :body].unflatten(1, (chunks, steps)) for t in (a, b, h)]
    if reverse:
        carry = _walk(a, b, h, range(length - 1, body - 1, -1), torch.zeros_like(b[:, 0]))
        _chunked(*chunked, carry, reverse)
    else:
        carry = _chunked(*chunked, torch.zeros_like(b[:, 0]), reverse)
        _walk(a, b, h, range(body, length), carry)
    return h


def _walk(a, b, h, positions, state):
    for t in positions:
        state = torch.addcmul(b[:, t], a[:, t], state, out=h[:, t])
    return state


def _chunked(a, b, h, state, reverse):
    """The recurrence over `(G, S, T, D)` views from `state (G, D)`; returns the state after the last position."""
    chunks, steps = a.shape[1:3]
    order = range(steps - 1, -1, -1) if reverse else range(steps)
    local = torch.zeros_like(b[:, :, 0])
    if chunks > 1:
        decay = a.prod(dim=2)
        for t in order:
            local = torch.addcmul(b[:, :, t], a[:, :, t], local)
    starts = torch.empty_like(local)
    for s in range(chunks - 1, -1, -1) if reverse else range(chunks):
        starts[:, s] = state
        if chunks > 1:
            state = torch.addcmul(local[:, s], decay[:, s], state)
    for t in order:
        starts = torch.addcmul(b[:, :, t], a[:, :, t], starts, out=h[:, :, t])
    return starts[:, 0] if chunks == 1 else state


def scan(u, dt, A, Bs, Cs, reverse=False):
    """Scan sequences that share `A`, without the D term.

    Args:
        u, dt: `(G, L, D)`, dt positive, after softplus.
        A: `(D, N)`.
        Bs, Cs: `(G, L, N)`.
        reverse: scan from the last position to the first; results stay at their positions.
    """
    dtu = dt * u
    y = torch.zeros_like(u)
    for n in range(A.shape[1]):
        h = linear_recurrence(torch.exp(dt * A[:, n]), dtu * Bs[..., n, None], reverse)
        y.addcmul_(h, Cs[..., n, None])
    return y


def scan_backward(dy, u, dt, A, Bs, Cs, reverse=False):
    """Adjoint of `scan`, states recomputed: gradients of `u, dt, A, Bs, Cs`."""
    dtu = dt * u
    du, ddt = torch.zeros_like(u), torch.zeros_like(u)
    dA, dBs, dCs = torch.empty_like(A), torch.empty_like(Bs), torch.empty_like(Cs)
    for n in range(A.shape[1]):
        B_n, C_n = Bs[..., n, None], Cs[..., n, None]
        a = torch.exp(dt * A[:, n])
        h = linear_recurrence(a, dtu * B_n, reverse)
        dCs[..., n] = (dy * h).sum(-1)
        # dh_t = C_t dy_t + a_{t+1} dh_{t+1}: the same recurrence against time, with the decays one step on
        dh = linear_recurrence(_neighbour(a, not reverse), dy * C_n, not reverse)
        dBs[..., n] = (dh * dtu).sum(-1)
        dlog_a = dh * _neighbour(h, reverse) * a
        dA[:, n] = (dlog_a * dt).sum((0, 1))
        ddt.addcmul_(dh * B_n, u).addcmul_(dlog_a, A[:, n])
        du.addcmul_(dh * B_n, dt)
    return du, ddt, dA, dBs, dCs


def _neighbour(t, after):
    """Values of the next (`after`) or previous position of `(G, L, D)`, zero where there is none."""
    shifted = torch.zeros_like(t)
    if after:
        shifted[:, :-1] = t[:, 1:]
    else:
        shifted[:, 1:] = t[:, :-1]
    return shifted


def blocks(batch, length, channels, device):
    """Slices of the batch whose temporaries stay below a fixed size."""
    elements = _BLOCK_ELEMENTS.get(device.type, _BLOCK_ELEMENTS_ELSEWHERE)
    size = max(1, elements // (length * channels))
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


def time_step(z, softplus):
    """Turn delta (bias added) into the time step."""
    return F.softplus(z) if softplus else z


def time_step_grad(ddt, z, softplus):
    """Gradient of `time_step` with respect to `z`; above softplus' threshold the sigmoid is 1 in float32 as well."""
    return ddt * torch.sigmoid(z) if softplus else ddt


def _sequences(u, delta, Bs, Cs, delta_bias, part, k, channels, dtype):
    """Route k of a slice of the batch as `(G, L, D)` and `(G, L, N)`, with delta's bias added."""
    route = slice(k * channels, (k + 1) * channels)
    u, z = (t[part, route].to(dtype).transpose(1, 2).contiguous() for t in (u, delta))
    if delta_bias is not None:
        z = z + delta_bias[route].to(dtype)
    return route, u, z, Bs[part, k].to(dtype).transpose(1, 2), Cs[part, k].to(dtype).transpose(1, 2)


def forward(u, delta, A, Bs, Cs, Ds, delta_bias, softplus):
    """See `mmvmamba.kernels.selective_scan`; here `Bs, Cs` are always `(B, K, N, L)`."""
    dtype = compute_dtype(u)
    batch, channels, length = u.shape
    groups = Bs.shape[1]
    y = torch.empty(u.shape, dtype=dtype, device=u.device)
    for k in range(groups):
        for part in blocks(batch, length, channels // groups, u.device):
            route, u_k, z, Bs_k, Cs_k = _sequences(u, delta, Bs, Cs, delta_bias, part, k, channels // groups, dtype)
            y_k = scan(u_k, time_step(z, softplus), A[route].to(dtype), Bs_k, Cs_k)
            if Ds is not None:
                y_k.addcmul_(u_k, Ds[route].to(dtype))
            y[part, route] = y_k.transpose(1, 2)
    return y


def backward(dy, u, delta, A, Bs, Cs, Ds, delta_bias, softplus):
    """Gradients in the order of `forward`'s tensors; those of absent arguments are empty."""
    dtype = compute_dtype(u)
    batch, channels, length = u.shape
    groups = Bs.shape[1]
    du, ddelta, dBs, dCs = (torch.empty(t.shape, dtype=dtype, device=t.device) for t in (u, delta, Bs, Cs))
    dA, dDs, dbias = (
        torch.zeros(0 if t is None else t.shape, dtype=dtype, device=u.device) for t in (A, Ds, delta_bias)
    )
    for k in range(groups):
        for part in blocks(batch, length, channels // groups, u.device):
            route, u_k, z, Bs_k, Cs_k = _sequences(u, delta, Bs, Cs, delta_bias, part, k, channels // groups, dtype)
            dy_k = dy[part, route].transpose(1, 2).contiguous()
            dt = time_step(z, softplus)
            du_k, ddt, dA_k, dBs_k, dCs_k = scan_backward(dy_k, u_k, dt, A[route].to(dtype), Bs_k, Cs_k)
            dz = time_step_grad(ddt, z, softplus)
            if Ds is not None:
                du_k.addcmul_(dy_k, Ds[route].to(dtype))
                dDs[route] += (dy_k * u_k).sum((0, 1))
            if delta_bias is not None:
                dbias[route] += dz.sum((0, 1))
            dA[route] += dA_k
            du[part, route], ddelta[part, route] = du_k.transpose(1, 2), dz.transpose(1, 2)
            dBs[part, k], dCs[part, k] = dBs_k.transpose(1, 2), dCs_k.transpose(1, 2)
    return du, ddelta, dA, dBs, dCs, dDs, dbias
