"""SS2D in vectorised PyTorch: one matrix product for all projections, then the blocked scan route by route.

The projection is per pixel, so it commutes with the routes and reads x once. A route is a direction and, for columns, a
transposed copy of one slice of the batch; nothing of the size of all routes exists at a time.
"""

import torch

from ..arguments import compute_dtype
from ..selective_scan.torch_blocked import blocks, scan, scan_backward, time_step, time_step_grad
from .routes import ROUTES, grid, sequence


def _project(x, x_proj_weight):
    """All routes' `(dts, Bs, Cs)` in one product: `(B, H, W, D)` to `(B, H, W, K, R + 2N)`."""
    return (x @ x_proj_weight.flatten(0, 1).T).unflatten(-1, x_proj_weight.shape[:2])


def _route_inputs(x, projected, dt_weight, dt_bias, states, by_column):
    """What a route scans, as `(G, L, ...)`: u, dts, the time step before softplus, Bs, Cs."""
    dts, Bs, Cs = sequence(projected, by_column).split([dt_weight.shape[1], states, states], dim=2)
    return sequence(x, by_column), dts, dts @ dt_weight.T + dt_bias, Bs, Cs


def _prepare(x, *parameters):
    dtype = compute_dtype(x)
    return tuple(t.to(dtype) for t in (x, *parameters))


def forward(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes):
    """See `mmvmamba.kernels.ss2d`; here `routes` is a key of `ROUTES`."""
    x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds = _prepare(
        x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds
    )
    batch, height, width, channels = x.shape
    projected = _project(x, x_proj_weight)
    y = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    for k, route in enumerate(ROUTES[routes]):
        own = slice(k * channels, (k + 1) * channels)
        for part in blocks(batch, height * width, channels, x.device):
            u, _, z, Bs, Cs = _route_inputs(
                x[part], projected[part, :, :, k], dt_projs_weight[k], dt_projs_bias[k], As.shape[1], route.by_column
            )
            walk = scan(u, time_step(z, softplus=True), As[own], Bs, Cs, route.reverse).addcmul_(u, Ds[own])
            if route.keep_order:
                walk = walk.flip(1)
            y[part] += grid(walk, route.by_column, height, width)
    return y


def backward(dy, x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes):
    """Gradients in the order of `forward`'s tensors; projections and states are recomputed."""
    dy, x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds = _prepare(
        dy, x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds
    )
    batch, height, width, channels = x.shape
    projected = _project(x, x_proj_weight)
    dprojected = torch.empty_like(projected)
    dx = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    ddt_weight, ddt_bias, dAs, dDs = (torch.zeros_like(t) for t in (dt_projs_weight, dt_projs_bias, As, Ds))
    for k, route in enumerate(ROUTES[routes]):
        own = slice(k * channels, (k + 1) * channels)
        for part in blocks(batch, height * width, channels, x.device):
            u, dts, z, Bs, Cs = _route_inputs(
                x[part], projected[part, :, :, k], dt_projs_weight[k], dt_projs_bias[k], As.shape[1], route.by_column
            )
            walk = sequence(dy[part], route.by_column)
            if route.keep_order:
                walk = walk.flip(1)
            dt = time_step(z, softplus=True)
            du, ddt, dA, dBs, dCs = scan_backward(walk, u, dt, As[own], Bs, Cs, route.reverse)
            du.addcmul_(walk, Ds[own])
            dz = time_step_grad(ddt, z, softplus=True)
            dAs[own] += dA
            dDs[own] += (walk * u).sum((0, 1))
            ddt_bias[k] += dz.sum((0, 1))
            ddt_weight[k] += dz.flatten(0, 1).T @ dts.flatten(0, 1)
            dx[part] += grid(du, route.by_column, height, width)
            dprojected[part, :, :, k] = grid(
                torch.cat([dz @ dt_projs_weight[k], dBs, dCs], dim=2), route.by_column, height, width
            )
    dx += dprojected.flatten(-2) @ x_proj_weight.flatten(0, 1)
    dx_proj = (dprojected.flatten(-2).flatten(0, 2).T @ x.flatten(0, 2)).view_as(x_proj_weight)
    return dx, dx_proj, ddt_weight, ddt_bias, dAs, dDs
