"""The pooled scan over the tokens that a mask has kept, in vectorised PyTorch: any device.

A line's kept tokens lie anywhere, so pooling and expansion are products with a matrix of which token lies on which
line: no atomic additions, two runs give the same bits. Everything else is `torch_blocked`'s.
"""

from typing import NamedTuple

import torch

from ..selective_scan.torch_blocked import blocks
from .torch_blocked import VECTORISED, Gradients, mix, prepare


class KeptLines(NamedTuple):
    """What `torch_blocked.Lines` is to a whole grid.

    Attributes:
        share: of a token in its pooled line.
        line: `(B, M)`, of each token.
        members: `(B, lines, M)`, 1 where a token lies on a line, else 0.
    """

    share: float
    line: torch.Tensor
    members: torch.Tensor

    def shorten(self, u):
        """The sequence to scan, `(B, lines, D)`; a line without tokens is a zero in it."""
        return self.share * (self.members @ u)

    def expand(self, v, u):
        """What a scanned sequence gives to the tokens."""
        return _taken(v, self.line)

    def expand_backward(self, dy):
        """The gradient of a scanned sequence from that of the tokens."""
        return self.members @ dy

    def shorten_backward(self, ds, du, u):
        """Add the gradient of the tokens to `du`."""
        du.add_(_taken(ds, self.line), alpha=self.share)


def _taken(t, index):
    """Rows of `(B, M, D)` by number, `index (B, S)`, as `(B, S, D)`."""
    # whole rows are copied; gathering every number by an index of its own takes ten times as long
    first = torch.arange(0, t.shape[0] * t.shape[1], t.shape[1], device=index.device)
    return t.flatten(0, 1).index_select(0, (index + first[:, None]).flatten()).unflatten(0, index.shape)


def _arranged(places, height, width, axis, scaling, consistent, dtype):
    """The order of the sequence and its inverse, `(B, M)` both, and how each direction pools."""
    rows, columns = places // width, places % width
    line, in_line = (rows, columns) if axis == 'row' else (columns, rows)
    lines, length = (height, width) if axis == 'row' else (width, height)
    order = torch.argsort(line * length + in_line, dim=1)
    line = line.gather(1, order)
    # the published rule counts the reversed sequence's lines from its start, as if its tokens had not been reversed
    ways = [line, line if consistent else lines - 1 - line.flip(1)]
    numbers = torch.arange(lines, device=places.device)[:, None]
    kept = [KeptLines(scaling / length, way, (way[:, None] == numbers).to(dtype)) for way in ways]
    return order, torch.argsort(order, dim=1), kept


def forward(xz, places, directions, norm_weight, norm_bias, height, width, axis, scaling, eps, consistent, scans=None):
    """See `mmvmamba.kernels.pooled_scan_kept`."""
    dtype, directions, norm = prepare(xz, directions, norm_weight, norm_bias)
    channels = xz.shape[2] // 2
    out = torch.empty(*xz.shape[:2], channels, dtype=xz.dtype, device=xz.device)
    for part in blocks(xz.shape[0], xz.shape[1], channels, xz.device):
        order, inverse, lines = _arranged(places[part], height, width, axis, scaling, consistent, dtype)
        x, z = _taken(xz[part].to(dtype), order).chunk(2, dim=2)
        out[part] = _taken(mix(x, z, directions, norm, eps, lines, scans or VECTORISED), inverse)
    return out


def backward(
    dout, xz, places, directions, norm_weight, norm_bias, height, width, axis, scaling, eps, consistent, scans=None
):
    """Gradients as `torch_blocked.backward`, behind the first that of the places: zeros, as they have none."""
    dtype, directions, norm = prepare(xz, directions, norm_weight, norm_bias)
    dxz = torch.empty(xz.shape, dtype=dtype, device=xz.device)
    grads = Gradients(directions, norm)
    for part in blocks(xz.shape[0], xz.shape[1], xz.shape[2] // 2, xz.device):
        order, inverse, lines = _arranged(places[part], height, width, axis, scaling, consistent, dtype)
        x, z = _taken(xz[part].to(dtype), order).chunk(2, dim=2)
        sorted_grad = torch.empty_like(dxz[part])
        dx, dz = sorted_grad.chunk(2, dim=2)
        dy = _taken(dout[part].to(dtype), order)
        grads.mix_backward(dy, dx, dz, x, z, directions, norm, eps, lines, scans or VECTORISED)
        dxz[part] = _taken(sorted_grad, inverse)
    return dxz, torch.zeros_like(places), *grads.flat()
