"""The selective scan compiled for the host, group by group; the walk is the one that SS2D takes along the rows."""

import torch

from ..shared_cpu.calls import Group, scan_backward, scan_chains
from ..ss2d.routes import Route


def _last(tensor):
    """`(B, C, L)` as float32 `(B, L, C)`: the compiled loops have channels as lanes."""
    return tensor.detach().float().transpose(1, 2).contiguous()


def _groups(u, delta, A, Bs, Cs, Ds, delta_bias, softplus):
    """One `Group` per K, with the slice of channels it owns."""
    length, total = u.shape[1:]
    count = Bs.shape[1]
    channels = total // count
    zero = A.new_zeros(total, dtype=torch.float32)
    projected = torch.cat([Bs, Cs], dim=2).detach().float().permute(0, 3, 1, 2).contiguous()
    skip, bias = (zero if t is None else t.detach().float() for t in (Ds, delta_bias))
    for k in range(count):
        own = slice(k * channels, (k + 1) * channels)
        yield (
            own,
            Group(
                x=u,
                projected=projected,
                k=k,
                weight=zero.new_empty(channels, 0),
                bias=bias[own],
                A=A[own].detach().float(),
                skip=skip[own],
                grid=(1, length),
                route=Route(),
                base=k * channels,
                softplus=softplus,
                ready=delta,
            ),
        )


def forward(u, delta, A, Bs, Cs, Ds, delta_bias, softplus):
    """See `mmvmamba.kernels.selective_scan`; here Bs and Cs are `(B, K, N, L)`."""
    x = _last(u)
    y = torch.empty_like(x)
    chains = [[group] for _, group in _groups(x, _last(delta), A, Bs, Cs, Ds, delta_bias, softplus)]
    scan_chains(chains, [y] * len(chains))
    return y.transpose(1, 2).contiguous()


def backward(dy, u, delta, A, Bs, Cs, Ds, delta_bias, softplus):
    """Gradients in the order of `forward`'s tensors; empty where the tensor is None."""
    x, g = _last(u), _last(dy)
    dx, dz = torch.empty_like(x), torch.empty_like(x)
    dA, dskip = x.new_empty(A.shape), x.new_empty(A.shape[0])
    per_group = []
    for own, group in _groups(x, _last(delta), A, Bs, Cs, Ds, delta_bias, softplus):
        dBC, dA[own], dskip[own] = scan_backward(group, g, dx, dz, add=False)
        per_group.append(dBC)
    states = A.shape[1]
    dBs, dCs = (torch.stack([d[..., part] for d in per_group], 1).mT for part in (slice(states), slice(states, None)))
    dD = x.new_empty(0) if Ds is None else dskip
    dbias = x.new_empty(0) if delta_bias is None else dz.sum((0, 1))
    return dx.transpose(1, 2), dz.transpose(1, 2), dA, dBs, dCs, dD, dbias
