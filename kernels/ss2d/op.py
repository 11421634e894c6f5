"""SS2D as a PyTorch operator: the public function, its checks, `torch.library` registration."""

import torch
from torch.nn import functional as F

from .. import dispatch, registration
from ..arguments import (
    case_of,
    check_like,
    check_parameter_dtype,
    check_tensor,
    compute_dtype,
    has_passed,
    note_passed,
)
from . import reference
from .routes import CASCADE, PAIR, PATTERNS

implementations = dispatch.Operator(
    'ss2d',
    __package__,
    {
        'reference': 'reference',
        'torch': 'torch_blocked',
        'cpu': 'cpu',
        'triton': 'triton_scan',
        dispatch.DECOMPOSED: dispatch.DECOMPOSED,
    },
)

TENSORS = 'Tensor x, Tensor x_proj_weight, Tensor dt_projs_weight, Tensor dt_projs_bias, Tensor As, Tensor Ds'


def _fake(x, *others):
    return torch.empty(x.shape, dtype=compute_dtype(x), device=x.device)


_scan = registration.CustomOperator(implementations, TENSORS, _fake, options='str routes')


def ss2d(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, *, routes='cross', backend='auto'):
    """Scan a grid along four routes: project every pixel, scan each route, add the four at each pixel.

    Route k maps a pixel by `x_proj_weight[k]` to `(dt_low_rank, Bs, Cs)`, takes
    `delta = dt_projs_weight[k] @ dt_low_rank` with bias `dt_projs_bias[k]`, and runs `selective_scan`. Result float32
    whatever the input (float64 for float64).

    Args:
        x: `(B, H, W, D)`.
        x_proj_weight: `(4, R + 2N, D)`.
        dt_projs_weight: `(4, D, R)`.
        dt_projs_bias: `(4, D)`.
        As: `(4*D, N)`, negative for a decaying state.
        Ds: `(4*D,)` skip weights.
        routes: 'cross' (rows, columns, both ways), 'unidi' (rows, four times), 'bidi' (rows, twice each way) or
            'cascade' (every row both ways, then every column both ways, layer-normalised before each).
        backend: 'auto', 'triton', 'cpu', 'torch' or 'reference'; 'auto' obeys MMVMAMBA_BACKEND.

    Returns:
        `(B, H, W, D)`, float32 or float64.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        BackendUnavailableError: the backend asked for cannot run here.

    Source: Liu et al., "VMamba: Visual State Space Model", arXiv 2401.10166, sections 4.2 and 5 (route patterns).
    """
    name = 'ss2d'
    parameters = (x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds)
    case = case_of(name, (x, *parameters), routes)
    if not has_passed(case):
        check_arguments(name, x, *parameters, routes)
        note_passed(case)
    chosen = dispatch.choose(name, backend, x.device.type, x.dtype)
    if routes == CASCADE:
        return _cascade(x, *parameters, chosen)
    return _scan_grid(x, *parameters, routes, chosen)


def check_arguments(name, x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes):
    """Refuse arguments of `ss2d` that do not fit; `name` is the operator that was called."""
    check_tensor(name, 'x', x, 4, '(B, H, W, D)')
    check_tensor(name, 'dt_projs_weight', dt_projs_weight, 3, '(4, D, R)')
    check_tensor(name, 'As', As, 2, '(4*D, N)')
    if routes not in PATTERNS:
        raise ValueError(f'{name}: routes={routes!r} is unknown; expected one of {list(PATTERNS)}')
    _, height, width, channels = x.shape
    rank, states = dt_projs_weight.shape[2], As.shape[1]
    if 0 in (height, width, channels, rank, states):
        raise ValueError(
            f'{name}: x has shape {tuple(x.shape)}, dt_projs_weight {tuple(dt_projs_weight.shape)}, As '
            f'{tuple(As.shape)}; only the batch may be empty, H, W, D, R and N may not'
        )
    check_like(name, 'x_proj_weight', x_proj_weight, {'4': 4, 'R + 2N': rank + 2 * states, 'D': channels}, 'x', x)
    check_like(name, 'dt_projs_weight', dt_projs_weight, {'4': 4, 'D': channels, 'R': rank}, 'x', x)
    check_like(name, 'dt_projs_bias', dt_projs_bias, {'4': 4, 'D': channels}, 'x', x)
    check_like(name, 'As', As, {'4*D': 4 * channels, 'N': states}, 'x', x)
    check_like(name, 'Ds', Ds, {'4*D': 4 * channels}, 'x', x)
    check_parameter_dtype(
        name,
        'x',
        x,
        x_proj_weight=x_proj_weight,
        dt_projs_weight=dt_projs_weight,
        dt_projs_bias=dt_projs_bias,
        As=As,
        Ds=Ds,
    )


def _cascade(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, backend):
    """Rows with routes 0 and 1, then columns of the result with routes 2 and 3; every line is a sequence of its own."""
    channels = x.shape[-1]

    def lines(t, half):  # (B, H, W, D): each of the B*H rows becomes a grid of one row
        pair = slice(2 * half, 2 * half + 2)
        flat = slice(2 * half * channels, (2 * half + 2) * channels)
        with dispatch.full_precision(x.device):
            normed = F.layer_norm(t.to(compute_dtype(x)), (channels,), eps=1e-5)
        parameters = (x_proj_weight[pair], dt_projs_weight[pair], dt_projs_bias[pair], As[flat], Ds[flat])
        return _scan_grid(normed.flatten(0, 1)[:, None], *parameters, PAIR, backend)[:, 0].unflatten(0, t.shape[:2])

    rows = lines(x, 0)
    return lines(rows.transpose(1, 2), 1).transpose(1, 2)


def _scan_grid(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes, backend):
    if backend == 'reference':
        with dispatch.full_precision(x.device):
            return reference.ss2d(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes)
    return _scan(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes, backend)
