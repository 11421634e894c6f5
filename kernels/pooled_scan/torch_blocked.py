"""The pooled scan in vectorised PyTorch, any device: what the three fused kernels do, as whole-tensor operations.

Each direction keeps one tensor of the size of its tokens. The convolution reads the grid through strides and writes in
the order of the sequence, and the gate writes back through strides: columns cost no transposed copy.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

from ..arguments import compute_dtype
from ..selective_scan.torch_blocked import (
    blocks,
    linear_recurrence,
    scan,
    scan_backward,
    time_step,
    time_step_grad,
)

_STATE_ELEMENTS = {'cpu': 1 << 20}
_STATE_ELEMENTS_ELSEWHERE = 1 << 25
"""Most elements of a tensor that holds every state of every position."""


def prepare(xz, directions, norm_weight, norm_bias):
    """The dtype to compute in, and directions and norm in it."""
    dtype = compute_dtype(xz)
    directions = tuple(tuple(t.to(dtype) for t in direction) for direction in directions)
    norm = None if norm_weight is None else (norm_weight.to(dtype), norm_bias.to(dtype))
    return dtype, directions, norm


def _grid(t, axis, planes='inner'):
    """View `(B, H, W, D)` as `(B, lines, positions of a line, D)`, in the order of the sequence.

    `(B, H, W, K, D)` likewise as `(B, lines, positions, K, D)`, or with outer planes as `(B, K, lines, positions, D)`.
    """
    t = t.transpose(1, 2) if axis == 'column' else t
    return t.movedim(3, 1) if t.ndim == 5 and planes == 'outer' else t


def _shifted(source, target, shift):
    """Views of two `(B, ..., D)` such that position t + shift of the first lies under position t of the second.

    Positions count through all axes, so a line's end and the next line's start are neighbours: that takes two pairs of
    views an axis.
    """
    if shift < 0:
        return [(s, t) for t, s in _shifted(target, source, -shift)]
    return _carried(source, target, shift, source.ndim - 2)


def _carried(source, target, shift, axis):
    """`_shifted` by a number of positions of `axis`, which carries into the axes before it."""
    size = source.shape[axis]
    if axis == 1:
        return [(source[:, shift:], target[:, : max(size - shift, 0)])]
    whole, rest = divmod(shift, size)
    stay = source.narrow(axis, rest, size - rest), target.narrow(axis, 0, size - rest)
    pairs = _carried(*stay, whole, axis - 1)
    if rest:
        carry = source.narrow(axis, 0, rest), target.narrow(axis, size - rest, rest)
        pairs += _carried(*carry, whole + 1, axis - 1)
    return pairs


def _sum(t):
    """Over everything but the last axis."""
    return t.sum(tuple(range(t.ndim - 1)))


def _taps(conv_weight, reverse):
    """Yield `(tap, shift)`: which neighbour of a position the tap reads; the last tap reads the position itself."""
    last = conv_weight.shape[2] - 1
    for tap in range(last + 1):
        yield tap, (last - tap) if reverse else (tap - last)


def _convolve(x, conv_weight, conv_bias, reverse):
    """Causal depthwise convolution along the sequence of `(B, ..., D)`; before the sequence there are zeros."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for tap, shift in reversed(list(_taps(conv_weight, reverse))):
        weight = conv_weight[:, 0, tap]
        if shift == 0:
            torch.addcmul(conv_bias, x, weight, out=out)
            continue
        for source, target in _shifted(x, out, shift):
            target.addcmul_(source, weight)
    return out


def _convolve_backward(dout, dx, x, conv_weight, reverse):
    """Add the gradient of the convolution's input to `dx`; return those of its weight and bias."""
    dweight = torch.zeros_like(conv_weight)
    for tap, shift in _taps(conv_weight, reverse):
        for source, target in _shifted(x, dout, shift):
            dweight[:, 0, tap] += _sum(source * target)
        for source, target in _shifted(dx, dout, shift):
            source.addcmul_(target, conv_weight[:, 0, tap])
    return dweight, _sum(dout)


class Lines(NamedTuple):
    """Pooling of a grid `(B, ..., D)` along one of its axes, and back.

    Attributes:
        pool: 'mean', 'max' or None, which scans all tokens.
        scaling: of the pooled tokens.
        axis: that is pooled.
    """

    pool: str | None
    scaling: float
    axis: int = 2

    def shorten(self, u):
        """The sequence to scan, `(B, S, D)`."""
        if self.pool is None:
            return u.flatten(1, -2)
        return self.scaling * (u.mean(self.axis) if self.pool == 'mean' else u.amax(self.axis)).flatten(1, -2)

    def expand(self, v, u):
        """What a scanned sequence gives to the tokens `u`, in a shape that is broadcast to theirs."""
        if self.pool is None:
            return v.view_as(u)
        return v.unflatten(1, u.shape[1 : self.axis] + u.shape[self.axis + 1 : -1]).unsqueeze(self.axis)

    def expand_backward(self, dy):
        """The gradient of a scanned sequence from that of the tokens."""
        return (dy if self.pool is None else dy.sum(self.axis)).flatten(1, -2)

    def shorten_backward(self, ds, du, u):
        """Add the gradient of the tokens to `du`; tokens that share a maximum share its gradient."""
        ds = self.expand(ds, u)
        if self.pool is None:
            du.add_(ds)
        elif self.pool == 'mean':
            du.add_(ds, alpha=self.scaling / u.shape[self.axis])
        else:
            largest = u == u.amax(self.axis, keepdim=True)
            du.addcmul_((self.scaling * ds) / largest.sum(self.axis, keepdim=True), largest.to(du.dtype))


def _short_inputs(s, x_proj_weight, dt_weight, dt_bias, states):
    """What a direction scans beside the sequence: dts, the time step before softplus, Bs, Cs."""
    dts, Bs, Cs = (s @ x_proj_weight.T).split([dt_weight.shape[1], states, states], dim=2)
    return dts, torch.addmm(dt_bias, dts.flatten(0, 1), dt_weight.T).view_as(s), Bs, Cs


def _together(u, A):
    """Whether a sequence is short enough to scan all states at once, as so many more channels: it saves calls."""
    return u.numel() * A.shape[1] <= _STATE_ELEMENTS.get(u.device.type, _STATE_ELEMENTS_ELSEWHERE)


def _scan(u, dt, A, Bs, Cs, reverse):
    """`scan`, by the faster of two ways."""
    if not _together(u, A):
        return scan(u, dt, A, Bs, Cs, reverse)
    return (_states(u, dt, A, Bs, reverse)[1] * Cs[:, :, None]).sum(-1)


def _states(u, dt, A, Bs, reverse):
    """Decays and states, `(G, L, D, N)` both."""
    a = torch.exp(dt[..., None] * A)
    b = (dt * u)[..., None] * Bs[:, :, None]
    return a, linear_recurrence(a.flatten(2), b.flatten(2), reverse).view_as(a)


def _scan_backward(dy, u, dt, A, Bs, Cs, reverse):
    """`scan_backward`, by the faster of two ways."""
    if not _together(u, A):
        return scan_backward(dy, u, dt, A, Bs, Cs, reverse)
    a, h = _states(u, dt, A, Bs, reverse)
    dCs = (dy[..., None] * h).sum(2)
    # dh_t = C_t dy_t + a_{t+1} dh_{t+1}: the same recurrence against time, with the decays one step on
    source = (dy[..., None] * Cs[:, :, None]).flatten(2)
    dh = linear_recurrence(_previous(a, not reverse).flatten(2), source, not reverse).view_as(a)
    dBs = (dh * (dt * u)[..., None]).sum(2)
    dlog_a = dh * _previous(h, reverse) * a
    dA = (dlog_a * dt[..., None]).sum((0, 1))
    dtu = (dh * Bs[:, :, None]).sum(-1)
    return dtu * dt, dtu * u + (dlog_a * A).sum(-1), dA, dBs, dCs


def _previous(t, reverse):
    """Values one step earlier in the direction of a scan over dim 1 of `(G, L, D, N)`, zero before the first."""
    return F.pad(t[:, 1:], (0, 0, 0, 0, 0, 1)) if reverse else F.pad(t[:, :-1], (0, 0, 0, 0, 1, 0))


class Scans(NamedTuple):
    """The scan over `(B, L, D)` and its gradients, both with the time step after softplus.

    Attributes:
        forward: `(u, dt, A, Bs, Cs, reverse)` to the result.
        backward: the result's gradient, then the same, to the gradients of `u, dt, A, Bs, Cs`.
    """

    forward: Callable
    backward: Callable


VECTORISED = Scans(_scan, _scan_backward)


def scan_pooled(s, direction, reverse, scans):
    """One direction's projections and scan of the pooled `(B, S, D)`."""
    _, _, x_proj_weight, dt_weight, dt_bias, A, _ = direction
    _, step, Bs, Cs = _short_inputs(s, x_proj_weight, dt_weight, dt_bias, A.shape[1])
    return scans.forward(s, time_step(step, softplus=True), A, Bs, Cs, reverse)


def scan_pooled_backward(dv, s, direction, reverse, scans):
    """From the gradient of `scan_pooled` to that of `s`, and to those of x_proj_weight, dt_weight, dt_bias, A."""
    _, _, x_proj_weight, dt_weight, dt_bias, A, _ = direction
    dts, step, Bs, Cs = _short_inputs(s, x_proj_weight, dt_weight, dt_bias, A.shape[1])
    ds, ddt, dA, dBs, dCs = scans.backward(dv, s, time_step(step, softplus=True), A, Bs, Cs, reverse)
    dstep = time_step_grad(ddt, step, softplus=True)
    dprojected = torch.cat([dstep @ dt_weight, dBs, dCs], dim=2)
    dx_proj = dprojected.flatten(0, 1).T @ s.flatten(0, 1)
    ddt_weight = dstep.flatten(0, 1).T @ dts.flatten(0, 1)
    return ds + dprojected @ x_proj_weight, dx_proj, ddt_weight, dstep.sum((0, 1)), dA


def _tokens(x, directions, lines, scans):
    """Both directions: each one's convolution before SiLU, and the sum of what both scans and skips give a token."""
    convolved, total = [], None
    for reverse, direction in enumerate(directions):
        p = _convolve(x, direction[0], direction[1], bool(reverse))
        u, Ds = F.silu(p), direction[-1]
        v = lines[reverse].expand(scan_pooled(lines[reverse].shorten(u), direction, bool(reverse), scans), u)
        total = torch.addcmul(v, u, Ds) if total is None else total.addcmul_(u, Ds).add_(v)
        convolved.append(p)
    return convolved, total


def mix(x, z, directions, norm, eps, lines, scans):
    """Tokens and gates `(B, ..., D)`, axes in the order of the sequence, to the result.

    Args:
        x, z: of the compute dtype; so are the parameters.
        directions: a tuple of tensors each.
        norm: its weight and bias, or None.
        eps: added to the variance.
        lines: how each direction pools, `Lines` or what has its methods.
        scans: what scans the pooled sequences.
    """
    _, y = _tokens(x, directions, lines, scans)
    y.mul_(0.5)
    if norm is not None:
        y = F.layer_norm(y, y.shape[-1:], *norm, eps)
    return y.mul_(F.silu(z))


class Gradients:
    """Sums of the parameters' gradients over blocks of a batch, and the way back through `mix`."""

    def __init__(self, directions, norm):
        like = directions[0][-1]
        self.of_directions = [[torch.zeros_like(t) for t in direction] for direction in directions]
        self.of_norm = [like.new_zeros(like.shape[0] if norm else 0) for _ in range(2)]

    def mix_backward(self, dout, dx, dz, x, z, directions, norm, eps, lines, scans):
        """Fill `dx` and `dz`; add to the parameters' gradients. Everything is recomputed."""
        convolved, y = _tokens(x, directions, lines, scans)
        dy = _finish_backward(dout, dz, y.mul_(0.5), z, norm, self.of_norm, eps).mul_(0.5)
        dx.zero_()
        for reverse, direction in enumerate(directions):
            options = (bool(reverse), lines[reverse], scans)
            _direction_backward(dy, dx, x, convolved[reverse], direction, self.of_directions[reverse], *options)

    def flat(self):
        """In the order of the operator's tensors."""
        return *self.of_directions[0], *self.of_directions[1], *self.of_norm


def forward(xz, directions, norm_weight, norm_bias, axis, pool, scaling, eps, planes='inner', scans=None):
    """See `mmvmamba.kernels.pooled_scan`."""
    dtype, directions, norm = prepare(xz, directions, norm_weight, norm_bias)
    tokens, channels = math.prod(xz.shape[1:-1]), xz.shape[-1] // 2
    out = torch.empty(*xz.shape[:-1], channels, dtype=xz.dtype, device=xz.device)
    lines = (_lines(xz, pool, scaling, planes),) * 2
    for part in blocks(xz.shape[0], tokens, channels, xz.device):
        x, z = _grid(xz[part], axis, planes).to(dtype).chunk(2, dim=-1)
        y = mix(x, z, directions, norm, eps, lines, scans or VECTORISED)
        _grid(out[part], axis, planes).copy_(y)
    return out


def backward(dout, xz, directions, norm_weight, norm_bias, axis, pool, scaling, eps, planes='inner', scans=None):
    """Gradients of `xz`, of every tensor of both directions, and of the norm (empty without one); all recomputed."""
    dtype, directions, norm = prepare(xz, directions, norm_weight, norm_bias)
    tokens, channels = math.prod(xz.shape[1:-1]), xz.shape[-1] // 2
    dxz = torch.empty(xz.shape, dtype=dtype, device=xz.device)
    grads = Gradients(directions, norm)
    lines = (_lines(xz, pool, scaling, planes),) * 2
    for part in blocks(xz.shape[0], tokens, channels, xz.device):
        x, z = _grid(xz[part], axis, planes).to(dtype).chunk(2, dim=-1)
        dx, dz = _grid(dxz[part], axis, planes).chunk(2, dim=-1)
        dy = _grid(dout[part], axis, planes).to(dtype)
        grads.mix_backward(dy, dx, dz, x, z, directions, norm, eps, lines, scans or VECTORISED)
    return dxz, *grads.flat()


def _lines(xz, pool, scaling, planes):
    return Lines(pool, scaling, 3 if xz.ndim == 5 and planes == 'outer' else 2)


def _finish_backward(dout, dz, y, z, norm, dnorm, eps):
    """Through gate and norm: fill `dz`, add to `dnorm`, return the gradient of `y`."""
    normed, mean, rstd = y, None, None
    if norm is not None:
        normed, mean, rstd = torch.native_layer_norm(y, y.shape[-1:], *norm, eps)
    gate = torch.sigmoid(z)
    dz.copy_(dout * normed * (gate * (1 + z * (1 - gate))))
    dy = dout * (z * gate)
    if norm is None:
        return dy
    # a contiguous gradient: not every device's kernel takes strides
    dy, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy.contiguous(), y, y.shape[-1:], mean, rstd, *norm, [True, True, True]
    )
    dnorm[0] += dweight
    dnorm[1] += dbias
    return dy


def _direction_backward(dy, dx, x, p, direction, grads, reverse, lines, scans):
    """Add one direction's gradients to `grads` (in the order of its tensors) and to `dx`."""
    conv_weight, Ds = direction[0], direction[-1]
    u = F.silu(p)
    ds, *of_scan = scan_pooled_backward(lines.expand_backward(dy), lines.shorten(u), direction, reverse, scans)
    du = dy * Ds
    dDs = _sum(dy * u)
    lines.shorten_backward(ds, du, u)
    gate = torch.sigmoid(p)
    dconv = _convolve_backward(du.mul_(gate * (1 + p * (1 - gate))), dx, x, conv_weight, reverse)
    for total, grad in zip(grads, (*dconv, *of_scan, dDs), strict=True):
        total += grad
