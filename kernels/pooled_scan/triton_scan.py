"""The pooled scan on a GPU: `triton_pool`, two matrix products and the scan that all operators share, `triton_gate`.

The short sequences are float32: rounded to bfloat16 they would cost more accuracy than they save memory. Nothing of the
tokens' size is kept but what is returned and, in the backward pass, one gradient. Where nothing is pooled the same
kernels run over all tokens.
"""

from typing import NamedTuple

import torch

from ..shared_triton.launch import on_device, planned
from ..shared_triton.numerics import dense, multiprocessors, programs_of_runs
from ..shared_triton.scan import Walks, scan
from ..shared_triton.scan_bwd import scan_backward
from ..ss2d.triton_scan import route_dtype
from .op import Direction
from .triton_gate import Gating, gate_fwd, gate_moments, gating
from .triton_gate_bwd import GatingBack, gate_bwd, gating_back
from .triton_lines import Lines
from .triton_pool import Pooling, factor, pool_fwd, pool_ties, pooling
from .triton_pool_bwd import PoolingBack, pool_bwd, pooling_back
from .triton_stack import Stacked, Stacking, stack, stacking

WIDEST_RANK = 48
"""Time steps of a higher rank are projected before the scan: its registers do not hold the weights."""


class _Plan(NamedTuple):
    """A forward pass as sizes fix it."""

    lines: Lines
    pooling: Pooling
    stacking: Stacking
    gating: Gating


class _PlanBack(NamedTuple):
    """What a backward pass needs besides."""

    pooling: Pooling
    moments: Gating
    gating: GatingBack
    pooling_back: PoolingBack


def _case(xz, forth, back, norm, axis, pool, planes) -> tuple:
    """What plans are kept by."""
    has_norm = norm[0] is not None
    tensors = (*forth, *back, *(norm if has_norm else ()))
    device = xz.device
    return (
        *(xz.shape, xz.dtype, device, axis, pool, planes, has_norm, tuple([t.dtype for t in tensors])),
        *(forth.conv_weight.shape, forth.dt_weight.shape, forth.A.shape),
        *(back.conv_weight.shape, back.dt_weight.shape, back.A.shape),
        *(programs_of_runs(device), multiprocessors(device)),
    )


@planned
def _plan(shape, dtype, device, axis, pool, planes, norm, dtypes, conv, weight, A, *others) -> _Plan:
    for field, first, second in zip(('conv_weight', 'dt_weight', 'A'), (conv, weight, A), others, strict=False):
        if first != second:
            raise ValueError(
                f'pooled_scan: forth.{field} has shape {tuple(first)} and back.{field} {tuple(second)}; the triton '
                "backend expects directions of the same sizes; use backend='torch'"
            )
    lines, pooled, width = Lines.of(shape, axis, pool, planes), pool is not None, conv[2]
    if lines.tokens >= 1 << 31:
        raise ValueError(f'pooled_scan: xz has shape {tuple(shape)}; the triton backend counts tokens with 32 bits')
    pooling_ = pooling(shape, dtype.itemsize, lines, width, pool, device)
    _, length, _, channels = pooling_.shape
    if length * 2 * channels >= 1 << 31:
        raise ValueError(
            f'pooled_scan: {length} tokens of 2 x {channels} channels; the triton backend indexes a sequence with 32 '
            "bits, L*2*D must stay below 2**31; use smaller images or backend='torch'"
        )
    return _Plan(
        lines,
        pooling=pooling_,
        stacking=stacking(channels, weight[1], A[1], width, zero=pooled),
        gating=gating(shape, lines, width, pooled, device),
    )


@planned
def _plan_back(_dout_dtype, *case) -> _PlanBack:
    plan = _plan(*case)
    shape, dtype, device, _, pool, _, norm, _, conv, *_ = case
    lines, width, pooled = plan.lines, conv[2], pool is not None
    of_lines = shape, dtype.itemsize, lines, width, pool, device
    return _PlanBack(
        pooling=pooling(*of_lines, ties=True) if pool == 'max' else plan.pooling,
        moments=gating(shape, lines, width, pooled, device, moments=True),
        gating=gating_back(shape, lines, width, pooled, norm, device),
        pooling_back=pooling_back(*of_lines),
    )


def _walks(short, stacked: Stacked) -> Walks:
    """Project the sequences `(B, L', 2, D)` and describe their two walks."""
    projection, weight, bias, A, skip, _ = stacked
    batch, length, _, channels = short.shape
    count, columns = batch * length, projection.shape[1]
    tokens = short.view(count, 2, channels).transpose(0, 1)
    projected = short.new_empty((count, 2, columns))
    torch.bmm(tokens, projection.transpose(1, 2), out=projected.transpose(0, 1))
    rank, ready = weight.shape[2], None
    if rank > WIDEST_RANK:
        ready = short.new_empty((count, 2, channels))
        torch.bmm(projected[..., :rank].transpose(0, 1), weight.transpose(1, 2), out=ready.transpose(0, 1))
        ready = ready.view(batch, length, 2 * channels)
        projected = projected[..., rank:].contiguous()
        weight = weight.new_empty((2, channels, 0))
        columns -= rank
    return Walks(
        short.view(batch, length, 2 * channels),
        projected.view(batch, length, 2, columns),
        *(ready, weight, bias, skip, A, (1, length)),
        reverses=0b10,
        grouped=True,
    )


def _dense(xz, directions, norm_weight, norm_bias):
    """The tensors as kernels can read them, the norm as a pair, of None where there is none."""
    forth, back = (Direction(*[dense(t) for t in direction]) for direction in directions)
    return dense(xz), forth, back, (None, None) if norm_weight is None else (dense(norm_weight), dense(norm_bias))


def forward(xz, directions, norm_weight, norm_bias, axis, pool, scaling, eps, planes='inner'):
    """See `mmvmamba.kernels.pooled_scan`."""
    xz, forth, back, norm = _dense(xz, directions, norm_weight, norm_bias)
    plan = _plan(*_case(xz, forth, back, norm, axis, pool, planes))
    with on_device(xz):
        stacked = stack(plan.stacking, forth, back)
        ways = stacked.ways
        short = pool_fwd(xz, ways, plan.pooling, pool, factor(plan.lines, pool, scaling))
        scanned = scan(_walks(short, stacked), torch.float32)
        return gate_fwd(xz, scanned, None if pool is None else ways, norm, plan.gating, float(eps))


def backward(dout, xz, directions, norm_weight, norm_bias, axis, pool, scaling, eps, planes='inner'):
    """Gradients of `xz`, of every tensor of both directions, and of the norm (empty without one); all recomputed."""
    dout = dense(dout)
    xz, forth, back, norm = _dense(xz, directions, norm_weight, norm_bias)
    case = _case(xz, forth, back, norm, axis, pool, planes)
    plan, plan_back = _plan(*case), _plan_back(dout.dtype, *case)
    pooled = pool is not None
    with on_device(xz):
        scale = factor(plan.lines, pool, scaling)
        stacked = stack(plan.stacking, forth, back)
        ways = stacked.ways
        maxima = None
        if pool == 'max':
            short, *maxima = pool_ties(xz, ways, plan_back.pooling, scale)
        else:
            short = pool_fwd(xz, ways, plan_back.pooling, pool, scale)
        walks = _walks(short, stacked)
        scanned = scan(walks, torch.float32).view(short.shape)
        dxz = torch.empty_like(xz)
        gated = xz, scanned, ways if pooled else None, norm
        moments = None
        if norm[0] is not None:
            moments = gate_moments(dout, *gated, plan_back.moments, float(eps))
        dtokens, dscanned, sums = gate_bwd(dout, moments, dxz, *gated, plan_back.gating, route_dtype(xz))
        grads = scan_backward(walks, dscanned.view(walks.x.shape), torch.float32)
        dshort, dprojection, dweight = _project_backward(short, stacked, walks, grads)
        dtaps, dtaps_bias = pool_bwd(dtokens, dshort, dxz, xz, ways, plan_back.pooling_back, scale, maxima)
    channels = short.shape[3]
    dskip = sums[:2] if pooled else grads.skip.view(2, channels)
    found = (dtaps, dtaps_bias, dprojection, dweight, grads.bias.view(2, channels))
    found = (*found, grads.A.view(2, channels, -1), dskip)
    dnorm = (sums.new_empty(0), sums.new_empty(0)) if moments is None else (sums[2], sums[3])
    return dxz, *(t[0] for t in found), *(t[1] for t in found), *dnorm


def _project_backward(short, stacked: Stacked, walks: Walks, grads):
    """Gradients of the sequences, shaped like `short`, of their projections and of the time steps' weights."""
    projection, weight = stacked.projection, stacked.weight
    batch, length, _, channels = short.shape
    count = batch * length
    tokens = short.view(count, 2, channels).transpose(0, 1)
    dprojected = grads.projected.view(count, 2, grads.projected.shape[-1]).transpose(0, 1)
    dweight = grads.weight
    if walks.ready is not None:
        rank = weight.shape[2]
        dstep = grads.ready.view(count, 2, channels).transpose(0, 1)
        low = torch.bmm(tokens, projection[:, :rank].transpose(1, 2))
        dweight = torch.bmm(dstep.transpose(1, 2), low)
        dprojected = torch.cat([torch.bmm(dstep, weight), dprojected], dim=2)
    dshort = grads.x.view(count, 2, channels)
    dshort.transpose(0, 1).baddbmm_(dprojected, projection)
    return dshort.view(short.shape), torch.bmm(dprojected.transpose(1, 2), tokens), dweight
