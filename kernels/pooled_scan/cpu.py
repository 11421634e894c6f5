"""The pooled scan on the host: PyTorch's vectorised operations around the compiled scan of the short sequences."""

import torch

from ..compiled.calls import Group, scan, scan_backward
from ..ss2d.routes import Route
from . import torch_blocked


def _group(u, dt, A, Bs, Cs, reverse):
    zero = torch.zeros(A.shape[0])
    return Group(
        x=u.contiguous(),
        projected=torch.cat([Bs, Cs], dim=2)[:, :, None].contiguous(),
        k=0,
        weight=torch.empty(A.shape[0], 0),
        bias=zero,
        A=A,
        skip=zero,
        grid=(1, u.shape[1]),
        route=Route(reverse=reverse),
        softplus=False,
        ready=dt.contiguous(),
    )


def _scan(*sequence):
    group = _group(*sequence)
    y = torch.empty_like(group.x)
    scan(group, y)
    return y


def _scan_backward(dy, *sequence):
    group = _group(*sequence)
    du, ddt = torch.empty_like(group.x), torch.empty_like(group.x)
    dBC, dA, _ = scan_backward(group, dy.contiguous(), du, ddt, add=False)
    return du, ddt, dA, *dBC.chunk(2, dim=2)


_COMPILED = torch_blocked.Scans(_scan, _scan_backward)


@torch.no_grad()
def forward(*arguments):
    """See `mmvmamba.kernels.pooled_scan`."""
    return torch_blocked.forward(*arguments, scans=_COMPILED)


@torch.no_grad()
def backward(*arguments):
    """See `torch_blocked.backward`."""
    return torch_blocked.backward(*arguments, scans=_COMPILED)
