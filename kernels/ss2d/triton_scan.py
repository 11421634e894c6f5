"""SS2D on a GPU: one matrix product for all projections, then the routes walked in place by `shared_triton`.

Neither routes nor time steps exist in device memory. Every route writes a buffer of its own; their sum is a pass of its
own (`forward`) or part of the normalisation that follows (`triton_norm`).
"""

import functools

import torch
from torch.nn import functional as F

from ..shared_triton.numerics import dense
from ..shared_triton.scan import Walks, scan
from ..shared_triton.scan_bwd import scan_backward
from ..shared_triton.sums import add_up
from .routes import ROUTES
from .triton_norm import normalise, normalise_backward


def route_dtype(x) -> torch.dtype:
    """Dtype of projections and routes' buffers: bfloat16 has float32's range; float16 would overflow in either."""
    return torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32


def _bits(flags) -> int:
    return sum(1 << k for k, flag in enumerate(flags) if flag)


@functools.cache
def _pattern(routes: str) -> tuple[int, int, int]:
    """A pattern's routes as `Walks` counts them: by columns, in reverse, in the order of the output."""
    pattern = ROUTES[routes]
    return tuple(_bits(getattr(route, field) for route in pattern) for field in ('by_column', 'reverse', 'keep_order'))


def walks_of(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes) -> Walks:
    """Project every pixel for every route and describe the routes."""
    batch, height, width, channels = x.shape
    count, columns = x_proj_weight.shape[:2]
    if height * width * max(channels, count * columns) >= 1 << 31:
        raise ValueError(
            f'ss2d: x has shape {tuple(x.shape)}; the triton backend indexes an image with 32 bits, H*W*D must stay '
            "below 2**31; use smaller images or backend='torch'"
        )
    x = dense(x).view(batch, height * width, channels)
    dtype, single = route_dtype(x), torch.float32
    flat = F.linear(dense(x, dtype), dense(x_proj_weight, dtype).view(count * columns, channels))
    by_columns, reverses, keeps = _pattern(routes)
    return Walks(
        x,
        flat.view(batch, height * width, count, columns),
        None,
        dense(dt_projs_weight, single),
        dense(dt_projs_bias, single),
        dense(Ds, single),
        dense(As, single),
        (height, width),
        by_columns,
        reverses,
        keeps,
    )


def forward(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes):
    """See `mmvmamba.kernels.ss2d`; here `routes` is a key of `ROUTES`."""
    walks = walks_of(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes)
    return add_up(scan(walks, route_dtype(x)), torch.float32).view(x.shape)


def backward(dy, x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes):
    """Gradients in the order of `forward`'s tensors; projections and states are recomputed."""
    walks = walks_of(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes)
    # products in the dtype of the projections, as in the forward pass; sums stay float32
    dtype = route_dtype(x)
    grads = scan_backward(walks, dense(dy), dtype, dtype)
    weight = dense(x_proj_weight, dtype).view(-1, x.shape[3])
    flat = grads.projected.view(-1, weight.shape[0])
    dx = add_up(grads.x, x.dtype, flat @ weight)
    dx_proj = (flat.T @ dense(walks.x, dtype).view(-1, x.shape[3])).view(x_proj_weight.shape)
    return dx.view(x.shape), dx_proj, grads.weight, grads.bias.view(dt_projs_bias.shape), grads.A, grads.skip


def forward_norm(
    x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, norm_weight, norm_bias, gate, eps, routes, trains
):
    """`ss2d_norm`: its result in the dtype of x and, if it `trains`, the routes' sum for `backward_norm`."""
    walks = walks_of(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes)
    gate = None if gate is None else dense(gate)
    norm = dense(norm_weight), dense(norm_bias)
    total, y = normalise(scan(walks, route_dtype(x)), *norm, gate, eps, x.dtype, trains)
    return y.view(x.shape), total.view(x.shape) if trains else total


def backward_norm(
    dy, total, x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, norm_weight, norm_bias, gate, eps, routes
):
    """Gradients in the order of `forward_norm`'s tensors; that of an absent gate is empty."""
    gate = None if gate is None else dense(gate)
    norm = dense(norm_weight), dense(norm_bias)
    dtotal, dweight, dbias, dgate = normalise_backward(dense(dy), dense(total), *norm, gate, eps)
    grads = backward(dtotal, x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes)
    return *grads, dweight, dbias, dgate
