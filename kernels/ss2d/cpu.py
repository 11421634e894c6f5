"""SS2D compiled for the host: one matrix product for all projections, then each route scanned in place.

No route is copied and nothing of the size of all routes exists at a time: the compiled loops walk the grid by index
arithmetic and add to one output. Half-precision inputs become float32 once, which the matrix product needs as well.
"""

import torch

from ..linear import linear
from ..shared_cpu.calls import Group, busiest, scan_backward, scan_chains
from .routes import ROUTES

_WORTH_A_SUM = 0.8  # share of the time that two outputs must bring the scans down to, before they are added


def _float(*tensors):
    return tuple(t.detach().float().contiguous() for t in tensors)


def _groups(x, projected, dt_projs_weight, dt_projs_bias, As, Ds, routes):
    """What each route scans."""
    channels = x.shape[3]
    for k, route in enumerate(ROUTES[routes]):
        own = slice(k * channels, (k + 1) * channels)
        yield (
            k,
            own,
            Group(
                x=x.flatten(1, 2),
                projected=projected,
                k=k,
                weight=dt_projs_weight[k],
                bias=dt_projs_bias[k],
                A=As[own],
                skip=Ds[own],
                grid=x.shape[1:3],
                route=route,
            ),
        )


def _project(x, x_proj_weight):
    """All routes' `(dts, Bs, Cs)` in one product: `(B, L, K, R + 2N)`."""
    flat = linear(x, x_proj_weight.flatten(0, 1)).flatten(1, 2)
    return flat.unflatten(-1, x_proj_weight.shape[:2])


def forward(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes):
    """See `mmvmamba.kernels.ss2d`; here `routes` is a key of `ROUTES`."""
    x, x_proj_weight, *parameters = _float(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds)
    projected = _project(x, x_proj_weight)
    groups = [group for _, _, group in _groups(x, projected, *parameters, routes)]
    y = torch.empty_like(x)
    outputs = [y.flatten(1, 2)]
    if busiest(x.shape[0], x.shape[3], chains=2) < _WORTH_A_SUM * 2 * busiest(x.shape[0], x.shape[3]):
        outputs.append(torch.empty_like(outputs[0]))
    scan_chains([groups[i :: len(outputs)] for i in range(len(outputs))], outputs)
    for other in outputs[1:]:
        y += other.view_as(y)
    return y


def backward(dy, x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes):
    """Gradients in the order of `forward`'s tensors; projections and states are recomputed."""
    dy, x, x_proj_weight, *parameters = _float(dy, x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds)
    rank = dt_projs_weight.shape[2]
    projected = _project(x, x_proj_weight)
    dprojected, dx = torch.empty_like(projected), torch.empty_like(x)
    grads = ddt_weight, ddt_bias, dAs, dDs = [torch.empty_like(t) for t in parameters]
    dz = torch.empty_like(x).flatten(1, 2)
    for k, own, group in _groups(x, projected, *parameters, routes):
        dBC, dAs[own], dDs[own] = scan_backward(group, dy.flatten(1, 2), dx.flatten(1, 2), dz, add=k > 0)
        positions = dz.flatten(0, 1)
        ddt_bias[k] = positions.sum(0)
        ddt_weight[k] = positions.T @ projected[:, :, k, :rank].flatten(0, 1)
        dprojected[:, :, k, :rank] = dz @ group.weight
        dprojected[:, :, k, rank:] = dBC
    flat = dprojected.flatten(2)
    dx += (flat @ x_proj_weight.flatten(0, 1)).view_as(dx)
    dx_proj = (flat.flatten(0, 1).T @ x.flatten(0, 2)).view_as(x_proj_weight)
    return dx, dx_proj, *grads
