"""The pooled scan on a GPU: `triton_pool`, two matrix products and the scan that all operators share, `triton_gate`.

The short sequences are float32: rounded to bfloat16 they would cost more accuracy than they save memory. Nothing of the
tokens' size is kept but what is returned and, in the backward pass, one gradient. Where nothing is pooled the same
kernels run over all tokens.
"""

import torch

from ..ss2d.triton_scan import route_dtype
from ..triton_bwd import scan_backward
from ..triton_fwd import Walks, scan
from .op import Direction
from .triton_gate import gate, gate_backward
from .triton_lines import Lines
from .triton_pool import pool as pool_lines
from .triton_pool import pool_backward

WIDEST_RANK = 48
"""Time steps of a higher rank are projected before the scan: its registers do not hold the weights."""


def _directions(xz, directions):
    """Both directions as `Direction`, detached and contiguous."""
    forth, back = (Direction(*(t.detach().contiguous() for t in direction)) for direction in directions)
    for field in ('conv_weight', 'dt_weight', 'A'):
        sizes = [tuple(getattr(direction, field).shape) for direction in (forth, back)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f'pooled_scan: forth.{field} has shape {sizes[0]} and back.{field} {sizes[1]}; the triton backend '
                "expects directions of the same sizes; use backend='torch'"
            )
    if xz.shape[1] * xz.shape[2] >= 1 << 31:
        raise ValueError(f'pooled_scan: xz has shape {tuple(xz.shape)}; the triton backend counts tokens with 32 bits')
    return forth, back


def _norm(norm_weight, norm_bias):
    return None if norm_weight is None else (norm_weight.detach().contiguous(), norm_bias.detach().contiguous())


def _walks(short, forth, back, lines, axis, pooled) -> Walks:
    """Project the sequences `(B, L', 2, D)` and describe their two walks."""
    batch, length, _, channels = short.shape
    if length * 2 * channels >= 1 << 31:
        raise ValueError(
            f'pooled_scan: {length} tokens of 2 x {channels} channels; the triton backend indexes a sequence with 32 '
            "bits, L*2*D must stay below 2**31; use smaller images or backend='torch'"
        )
    tokens = short.view(batch * length, 2, channels)
    projected = short.new_empty((batch * length, 2, forth.x_proj_weight.shape[0]))
    for k, way in enumerate((forth, back)):
        torch.mm(tokens[:, k], way.x_proj_weight.float().T, out=projected[:, k])
    # one copy of all parameters: on small inputs launches are what takes time
    fields = ('dt_weight', 'dt_bias', 'Ds', 'A')
    parts = [getattr(way, field).flatten() for field in fields for way in (forth, back)]
    sizes = [2 * getattr(forth, field).numel() for field in fields]
    weight, bias, skip, A = torch.cat(parts).float().split(sizes)
    weight, A = weight.view(2, channels, -1), A.view(2 * channels, -1)
    rank, ready = weight.shape[2], None
    if rank > WIDEST_RANK:
        ready = torch.stack([projected[:, k, :rank] @ weight[k].T for k in range(2)], dim=1)
        ready = ready.view(batch, length, 2 * channels)
        projected = projected[..., rank:].contiguous()
        weight = weight[..., :0]
    if pooled:
        grid, columns = (1, length), 0
    else:
        grid = (lines.lines, lines.size) if axis == 'row' else (lines.size, lines.lines)
        columns = 0b11 if axis == 'column' else 0
    return Walks(
        x=short.view(batch, length, 2 * channels),
        projected=projected.view(batch, length, 2, projected.shape[-1]),
        ready=ready,
        weight=weight,
        bias=bias,
        skip=torch.zeros_like(skip) if pooled else skip,
        A=A,
        grid=grid,
        columns=columns,
        reverses=0b10,
        grouped=True,
    )


def forward(xz, directions, norm_weight, norm_bias, axis, pool, scaling, eps):
    """See `mmvmamba.kernels.pooled_scan`."""
    xz = xz.detach().contiguous()
    forth, back = _directions(xz, directions)
    lines, pooled = Lines.of(xz, axis), pool is not None
    short, _, _ = pool_lines(xz, lines, forth, back, pool, scaling)
    scanned = scan(_walks(short, forth, back, lines, axis, pooled), torch.float32).view_as(short)
    return gate(xz, scanned, lines, forth, back, _norm(norm_weight, norm_bias), pooled, eps)


def backward(dout, xz, directions, norm_weight, norm_bias, axis, pool, scaling, eps):
    """Gradients of `xz`, of every tensor of both directions, and of the norm (empty without one); all recomputed."""
    xz, dout = xz.detach().contiguous(), dout.detach().contiguous()
    forth, back = _directions(xz, directions)
    norm = _norm(norm_weight, norm_bias)
    lines, pooled = Lines.of(xz, axis), pool is not None
    short, largest, ties = pool_lines(xz, lines, forth, back, pool, scaling, ties=pool == 'max')
    walks = _walks(short, forth, back, lines, axis, pooled)
    scanned = scan(walks, torch.float32).view_as(short)

    dxz = torch.empty_like(xz)
    dtokens, dscanned, sums = gate_backward(
        dout, dxz, xz, scanned, lines, forth, back, norm, pooled, eps, route_dtype(xz)
    )
    grads = scan_backward(walks, dscanned.view_as(walks.x), torch.float32)
    channels = short.shape[3]
    dshort = grads.x.view_as(short)
    dprojections, dt_weights = [], list(grads.weight)
    for k, way in enumerate((forth, back)):
        tokens, dprojected = short[:, :, k].flatten(0, 1), grads.projected[:, :, k].flatten(0, 1)
        if walks.ready is not None:
            dstep = grads.ready[..., k * channels : (k + 1) * channels].flatten(0, 1)
            dt_weights[k] = dstep.T @ (tokens @ way.x_proj_weight[: way.dt_weight.shape[1]].float().T)
            dprojected = torch.cat([dstep @ way.dt_weight.float(), dprojected], dim=1)
        dshort[:, :, k] += (dprojected @ way.x_proj_weight.float()).view(dshort[:, :, k].shape)
        dprojections.append(dprojected.T @ tokens)
    dtaps = pool_backward(
        dtokens if pooled else dshort, dshort, dxz, xz, lines, forth, back, pool, scaling, largest, ties
    )
    dskip = sums[:2] if pooled else grads.skip.view(2, channels)
    dbias, dA = grads.bias.view(2, channels), grads.A.view(2, channels, -1)
    parameters = (
        (dtaps[k, :-1].T[:, None], dtaps[k, -1], dprojections[k], dt_weights[k], dbias[k], dA[k], dskip[k])
        for k in range(2)
    )
    dnorm = sums[2:] if norm is not None else sums.new_empty(2, 0)
    # clones: an operator's results must not share memory
    return dxz, *(grad.clone() for direction in parameters for grad in direction), *(grad.clone() for grad in dnorm)
