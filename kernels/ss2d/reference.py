"""SS2D step by step: every route materialised, projected and scanned by the reference scan, then merged."""

import torch

from ..arguments import compute_dtype
from ..selective_scan.reference import selective_scan
from .routes import ROUTES, grid, sequence


def ss2d(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes):
    """See `mmvmamba.kernels.ss2d`; here `routes` is a key of `ROUTES`, `Ds` is present."""
    dtype = compute_dtype(x)
    x, x_proj_weight, dt_projs_weight = (t.to(dtype) for t in (x, x_proj_weight, dt_projs_weight))
    _, height, width, _ = x.shape
    states, rank = As.shape[1], dt_projs_weight.shape[2]

    walks = []
    for route in ROUTES[routes]:
        walk = sequence(x, route.by_column)
        walks.append(walk.flip(1) if route.reverse else walk)
    xs = torch.stack(walks, dim=1)  # (B, K, L, D)

    projected = torch.einsum('bkld,kcd->bkcl', xs, x_proj_weight)
    dts, Bs, Cs = projected.split([rank, states, states], dim=2)
    delta = torch.einsum('bkrl,kdr->bkdl', dts, dt_projs_weight)
    ys = selective_scan(
        xs.transpose(2, 3).flatten(1, 2), delta.flatten(1, 2), As, Bs, Cs, Ds, dt_projs_bias.flatten(), True
    )
    ys = ys.unflatten(1, (len(walks), -1)).transpose(2, 3)  # (B, K, L, D)

    y = torch.zeros_like(x)
    for k, route in enumerate(ROUTES[routes]):
        walk = ys[:, k].flip(1) if route.reverse and not route.keep_order else ys[:, k]
        y = y + grid(walk, route.by_column, height, width)
    return y
