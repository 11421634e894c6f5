"""The pooled scan compiled for the host: two passes over the tokens, and between them the scan of the short sequences.

What no published model has (another width of the convolutions, maxima, odd numbers of channels) runs in PyTorch around
the compiled scan.
"""

import numpy as np
import torch

from ..shared_cpu import lines as passes
from ..shared_cpu.calls import Group, address, scan, scan_backward
from ..shared_cpu.threads import run
from ..shared_cpu.vectors import LANES
from ..ss2d.routes import Route
from . import torch_blocked


def _group(u, dt, A, Bs, Cs, reverse):
    zero = A.new_zeros(A.shape[0])
    return Group(
        x=u.contiguous(),
        projected=torch.cat([Bs, Cs], dim=2)[:, :, None].contiguous(),
        k=0,
        weight=A.new_empty(A.shape[0], 0),
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


COMPILED = torch_blocked.Scans(_scan, _scan_backward)


class _Tokens:
    """A grid of tokens on its way through the compiled passes."""

    def __init__(self, xz, directions, norm_weight, norm_bias, axis, pool, scaling, eps, planes='inner'):
        batch, height, width = xz.shape[:3]
        count = xz.shape[3] if xz.ndim == 5 else 1
        self.channels = xz.shape[-1] // 2
        self.directions = [tuple(t.detach().float() for t in direction) for direction in directions]
        rows, columns = (height, width) if axis == 'row' else (width, height)
        inner = count if planes == 'inner' else 1  # planes in a line
        lines, line = rows * count // inner, columns * inner
        spans = inner if pool else line
        self.tasks = batch * lines
        self.pooled_shape = (2, batch, lines * spans, self.channels)
        self.sizes = dict(
            batch=batch,
            lines=lines,
            line=line,
            spans=spans,
            rows=rows,
            planes=inner,
            outer=count * (width if axis == 'row' else 1),
            inner=count * (1 if axis == 'row' else width),
            channels=self.channels,
            normed=norm_weight is not None,
            share=scaling / (line // spans),
            eps=eps,
        )
        self.tensors = dict(xz=xz.detach().float().contiguous(), packed=self._packed())
        if norm_weight is not None:
            self.tensors['norm'] = torch.stack([norm_weight, norm_bias]).detach().float()
        self.pooled = self.empty(*self.pooled_shape)
        self.mixed = self.tensors['mixed'] = self.empty(*xz.shape[:-1], self.channels)
        self.run(passes.pool(), pooled=self.pooled)
        self.tensors['scanned'] = torch.stack(
            [
                torch_blocked.scan_pooled(s, direction, bool(reverse), COMPILED)
                for reverse, (s, direction) in enumerate(zip(self.pooled, self.directions, strict=True))
            ]
        )

    def _packed(self):
        """The parameters of `passes.PACKED`, vector by vector."""
        taps, biases, skips = ([direction[i] for direction in self.directions] for i in (0, 1, 6))
        rows = torch.cat([*(t[:, 0].T for t in taps), torch.stack([*biases, *skips])])
        return rows.unflatten(1, (-1, LANES)).transpose(0, 1).contiguous()

    def empty(self, *shape):
        return torch.empty(shape, dtype=torch.float32, device='cpu')

    def run(self, function, **more):
        """Run a pass over all lines; it reads and writes `tensors` and `more`."""
        job = np.zeros((), passes.JOB)
        for name, number in self.sizes.items():
            job[name] = number
        for name, tensor in (self.tensors | more).items():
            job[name] = address(tensor)
        run(function, job.ctypes.data, self.tasks)


def _takes(directions, pool):
    """Whether the compiled passes are made for these: what published models have. The rest runs in PyTorch."""
    conv_weight = directions[0][0]
    same = all(direction[0].shape[2] == passes.TAPS for direction in directions)
    return same and pool != 'max' and conv_weight.shape[0] % LANES == 0


@torch.no_grad()
def forward(xz, directions, norm_weight, norm_bias, axis, pool, scaling, eps, planes='inner'):
    """See `mmvmamba.kernels.pooled_scan`."""
    arguments = (xz, directions, norm_weight, norm_bias, axis, pool, scaling, eps, planes)
    if not _takes(directions, pool):
        return torch_blocked.forward(*arguments, scans=COMPILED)
    tokens = _Tokens(*arguments)
    tokens.run(passes.finish(), out=tokens.mixed)
    return tokens.mixed.to(xz.dtype)


@torch.no_grad()
def backward(dout, xz, directions, norm_weight, norm_bias, axis, pool, scaling, eps, planes='inner'):
    """See `torch_blocked.backward`."""
    arguments = (xz, directions, norm_weight, norm_bias, axis, pool, scaling, eps, planes)
    if not _takes(directions, pool):
        return torch_blocked.backward(dout, *arguments, scans=COMPILED)
    tokens = _Tokens(*arguments)
    channels, tasks = tokens.channels, tokens.tasks
    dxz, dy = tokens.empty(*xz.shape), tokens.mixed
    dscanned = tokens.empty(*tokens.pooled_shape[1:])
    dnorm, sums = tokens.empty(tasks, 2, channels), tokens.empty(tasks, 2, passes.TAPS + 2, channels)
    dout = dout.float().contiguous()
    tokens.run(passes.unfinish(), dout=dout, dxz=dxz, dy=dy, dscanned=dscanned, dnorm=dnorm)
    dpooled, of_scans = [], []
    for reverse, (s, direction) in enumerate(zip(tokens.pooled, tokens.directions, strict=True)):
        ds, *of_scan = torch_blocked.scan_pooled_backward(dscanned, s, direction, bool(reverse), COMPILED)
        dpooled.append(ds)
        of_scans.append(of_scan)
    taps, bias, skip = (torch.stack([direction[i] for direction in tokens.directions]) for i in (0, 1, 6))
    taps = taps[:, :, 0].transpose(1, 2).contiguous()
    tokens.run(
        passes.unpool(), dxz=dxz, dy=dy, dpooled=torch.stack(dpooled), sums=sums, taps=taps, bias=bias, skip=skip
    )
    grads = []
    for way, of_scan in zip(sums.sum(0), of_scans, strict=True):
        taps, bias, skip = (part.clone() for part in way.split([passes.TAPS, 1, 1]))
        grads += [taps.T[:, None], bias[0], *of_scan, skip[0]]
    of_norm = (t.clone() for t in dnorm.sum(0)) if norm_weight is not None else (dnorm.new_empty(0), dnorm.new_empty(0))
    return dxz, *grads, *of_norm
