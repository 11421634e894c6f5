"""SS2D in the operators that exporters know: all routes are scanned together, in chunks as long as a row.

A route's sequence has H * W positions whichever way it goes, so H chunks of W positions serve all of them, and the
steps are W + H + W.
"""

import torch

from ..arguments import compute_dtype
from ..selective_scan.decomposed import chunked_scan
from ..selective_scan.torch_blocked import time_step
from .routes import ROUTES, grid, sequence


def _chunked(x, routes):
    """Every route's walk, `(B, H, W, D)` to `(T, K, B, S, D)`."""
    walks = [sequence(x, route.by_column) for route in routes]
    walks = [walk.flip(1) if route.reverse else walk for walk, route in zip(walks, routes, strict=True)]
    return torch.stack(walks).unflatten(2, x.shape[1:3]).permute(3, 0, 1, 2, 4)


def _merged(ys, routes, height, width):
    """The sum of all routes at each pixel, `(T, K, B, S, D)` to `(B, H, W, D)`."""
    total = 0
    for walk, route in zip(ys.permute(1, 2, 3, 0, 4).flatten(2, 3).unbind(0), routes, strict=True):
        if route.reverse and not route.keep_order:
            walk = walk.flip(1)
        total = total + grid(walk, route.by_column, height, width)
    return total


def forward(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes):
    """See `mmvmamba.kernels.ss2d`; here `routes` is a key of `ROUTES`."""
    dtype = compute_dtype(x)
    x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds = (
        t.to(dtype) for t in (x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds)
    )
    used = ROUTES[routes]
    height, width, channels = x.shape[1:]
    states, rank = As.shape[1], dt_projs_weight.shape[2]
    u = _chunked(x, used)
    # (K, 1, D, C): the same product for every position and image
    dts, Bs, Cs = (u @ x_proj_weight.mT[:, None]).split([rank, states, states], dim=4)
    dt = time_step(dts @ dt_projs_weight.mT[:, None] + dt_projs_bias[:, None, None], softplus=True)
    A = As.unflatten(0, (len(used), channels)).mT
    ys = chunked_scan(u, dt, A, Bs, Cs) + u * Ds.unflatten(0, (len(used), 1, 1, channels))
    return _merged(ys, used, height, width)
