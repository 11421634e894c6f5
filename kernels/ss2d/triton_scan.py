"""SS2D on a GPU: one matrix product for all projections, then the routes walked in place by `triton_fwd`, `triton_bwd`.

Neither routes nor time steps exist in device memory. Every route writes a buffer of its own; their sum is a pass of its
own (`forward`) or part of the normalisation that follows (`triton_norm`).
"""

import torch

from ..triton_bwd import scan_backward
from ..triton_fwd import Walks, scan
from .routes import ROUTES
from .triton_norm import normalise, normalise_backward


def route_dtype(x) -> torch.dtype:
    """Dtype of projections and routes' buffers: bfloat16 has float32's range; float16 would overflow in either."""
    return torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32


def _bits(flags) -> int:
    return sum(1 << k for k, flag in enumerate(flags) if flag)


def walks_of(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes) -> Walks:
    """Project every pixel for every route and describe the routes."""
    pattern = ROUTES[routes]
    count, columns = x_proj_weight.shape[:2]
    if x.shape[1] * x.shape[2] * max(x.shape[3], count * columns) >= 1 << 31:
        raise ValueError(
            f'ss2d: x has shape {tuple(x.shape)}; the triton backend indexes an image with 32 bits, H*W*D must stay '
            "below 2**31; use smaller images or backend='torch'"
        )
    grid = tuple(x.shape[1:3])
    x = x.detach().contiguous().flatten(1, 2)
    flat = x.to(route_dtype(x)) @ x_proj_weight.detach().to(route_dtype(x)).flatten(0, 1).T
    dt_projs_weight, dt_projs_bias, As, Ds = (
        t.detach().float().contiguous() for t in (dt_projs_weight, dt_projs_bias, As, Ds)
    )
    return Walks(
        x=x,
        projected=flat.unflatten(-1, (count, columns)),
        ready=None,
        weight=dt_projs_weight,
        bias=dt_projs_bias,
        skip=Ds,
        A=As,
        grid=grid,
        columns=_bits(route.by_column for route in pattern),
        reverses=_bits(route.reverse for route in pattern),
        keeps=_bits(route.keep_order for route in pattern),
    )


def forward(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes):
    """See `mmvmamba.kernels.ss2d`; here `routes` is a key of `ROUTES`."""
    walks = walks_of(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes)
    return scan(walks, route_dtype(x)).sum(0, dtype=torch.float32).view(x.shape)


def backward(dy, x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes):
    """Gradients in the order of `forward`'s tensors; projections and states are recomputed."""
    walks = walks_of(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes)
    grads = scan_backward(walks, dy.detach().contiguous(), route_dtype(x))
    # products in the dtype of the projections, as in the forward pass; sums stay float32
    flat = grads.projected.flatten(2).flatten(0, 1).to(route_dtype(x))
    pixels = walks.x.flatten(0, 1).to(flat.dtype)
    dx = grads.x.sum(0, dtype=torch.float32)
    dx += (flat @ x_proj_weight.detach().to(flat.dtype).flatten(0, 1)).view_as(dx)
    dx_proj = (flat.T @ pixels).view_as(x_proj_weight)
    return dx.view(x.shape), dx_proj, grads.weight, grads.bias.view_as(dt_projs_bias), grads.A, grads.skip


def _dense(*tensors):
    return [None if t is None else t.detach().contiguous() for t in tensors]


def forward_norm(
    x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, norm_weight, norm_bias, gate, eps, routes, trains
):
    """`ss2d_norm`: its result in the dtype of x and, if it `trains`, the routes' sum for `backward_norm`."""
    walks = walks_of(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes)
    buffers = scan(walks, route_dtype(x))
    norm_weight, norm_bias, gate = _dense(norm_weight, norm_bias, gate)
    total, y = normalise(buffers, norm_weight, norm_bias, gate, eps, x.dtype, trains)
    return y.view(x.shape), total.view(x.shape) if trains else total


def backward_norm(
    dy, total, x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, norm_weight, norm_bias, gate, eps, routes
):
    """Gradients in the order of `forward_norm`'s tensors; that of an absent gate is empty."""
    norm_weight, norm_bias, gate = _dense(norm_weight, norm_bias, gate)
    dtotal, dweight, dbias, dgate = normalise_backward(dy.contiguous(), total, norm_weight, norm_bias, gate, eps)
    grads = backward(dtotal, x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes)
    return *grads, dweight, dbias, dgate
