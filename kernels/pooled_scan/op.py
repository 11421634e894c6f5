"""The pooled scan as a PyTorch operator: the public function, its checks, `torch.library` registration."""

from typing import NamedTuple

import torch

from .. import dispatch, registration
from ..arguments import (
    case_of,
    check_like,
    check_number,
    check_parameter_dtype,
    check_tensor,
    has_passed,
    note_passed,
)
from . import reference

_operator = dispatch.Operator(
    'pooled_scan',
    __package__,
    {
        'reference': 'reference',
        'torch': 'torch_blocked',
        'cpu': 'cpu',
        'triton': 'triton_scan',
        dispatch.DECOMPOSED: dispatch.DECOMPOSED,
    },
)

AXES = ('row', 'column')
POOLS = ('mean', 'max', None)


class Direction(NamedTuple):
    """Parameters of one direction of `pooled_scan`.

    Attributes:
        conv_weight: `(D, 1, k)`, the last tap reads the position itself.
        conv_bias: `(D,)`.
        x_proj_weight: `(R + 2N, D)`, to `(dt_low_rank, Bs, Cs)`.
        dt_weight: `(D, R)`.
        dt_bias: `(D,)`.
        A: `(D, N)`, negative for a decaying state.
        Ds: `(D,)` skip weights.
    """

    conv_weight: torch.Tensor
    conv_bias: torch.Tensor
    x_proj_weight: torch.Tensor
    dt_weight: torch.Tensor
    dt_bias: torch.Tensor
    A: torch.Tensor
    Ds: torch.Tensor


_COUNT = len(Direction._fields)
_WAYS = ('forth', 'back')


def pooled_scan(
    xz,
    forth,
    back,
    norm_weight=None,
    norm_bias=None,
    *,
    axis='row',
    pool='mean',
    scaling=1.0,
    eps=1e-5,
    backend='auto',
):
    """Scan the pooled lines of a grid in both directions: all of FastVim's mixer between its two outer projections.

    A line is a row or a column. Each direction walks all tokens line by line (`back` from the last to the first):
    causal depthwise convolution and SiLU give `u`; every line is pooled to one token; the short sequence is projected
    by `x_proj_weight` to `(dt_low_rank, Bs, Cs)`, its step is `dt_weight @ dt_low_rank` with bias `dt_bias`, and
    `selective_scan` runs over it; each line's result is added to `Ds * u` of all its tokens. The mean of both
    directions, layer-normalised, times `silu(z)` is the result. Float32 inside (float64 for float64).

    Args:
        xz: `(B, H, W, 2D)`: the tokens x, and behind them the gate z before its SiLU.
        forth, back: parameters of the two directions, a `Direction` each.
        norm_weight, norm_bias: `(D,)`, or both None for no norm.
        axis: 'row' scans H rows, 'column' scans W columns; never a transposed copy.
        pool: 'mean' or 'max' over a line, or None to scan all tokens (bidirectional Mamba, the unpooled baseline).
        scaling: factor of the pooled tokens (masked pre-training: the kept fraction); 1 where nothing is pooled.
        eps: added to the variance.
        backend: 'auto', 'triton', 'cpu', 'torch' or 'reference'; 'auto' obeys MMVMAMBA_BACKEND.

    Returns:
        `(B, H, W, D)` in the dtype of xz.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        BackendUnavailableError: the backend asked for cannot run here.

    Source: Kapse et al., "Fast Vision Mamba", arXiv 2502.00594, section 3.
    """
    name = 'pooled_scan'
    tensors = (xz, *_flat(name, 'forth', forth), *_flat(name, 'back', back), norm_weight, norm_bias)
    case = case_of(name, tensors, axis, pool, scaling, eps)
    if not has_passed(case):
        _check(name, tensors, axis, pool, scaling, eps)
        note_passed(case)
    chosen = dispatch.choose(name, backend, xz.device.type, xz.dtype)
    if chosen == 'reference':
        with dispatch.full_precision(xz.device):
            return reference.pooled_scan(*_structured(tensors), axis, pool, scaling, eps)
    return _scan(*tensors, axis, pool, float(scaling), float(eps), chosen)


def _check(name, tensors, axis, pool, scaling, eps):
    xz, directions, norm_weight, norm_bias = _structured(tensors)
    _check_options(name, axis, pool, scaling)
    check_tensor(name, 'xz', xz, 4, '(B, H, W, 2D)')
    if 0 in xz.shape[1:] or xz.shape[3] % 2:
        raise ValueError(
            f'{name}: xz has shape {tuple(xz.shape)}; expected (B, H, W, 2D), of which only the batch may be empty'
        )
    for way, direction in zip(_WAYS, directions, strict=True):
        _check_direction(name, xz, way, Direction(*direction))
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError(f'{name}: one of norm_weight and norm_bias is None; give both or neither')
    for label, value in (('norm_weight', norm_weight), ('norm_bias', norm_bias)):
        if value is not None:
            check_like(name, label, value, {'D': xz.shape[3] // 2}, 'xz', xz)
    check_parameter_dtype(name, 'xz', xz, norm_weight=norm_weight, norm_bias=norm_bias)
    check_number(name, 'scaling', scaling)
    check_number(name, 'eps', eps)


def _flat(name, way, direction) -> tuple:
    """A direction's tensors."""
    if not isinstance(direction, tuple) or len(direction) != _COUNT:
        raise TypeError(f'{name}: {way} must be a Direction of {_COUNT} tensors, got {type(direction).__name__}')
    return (*direction,)


def _check_options(name, axis, pool, scaling):
    for label, value, choices in (('axis', axis, AXES), ('pool', pool, POOLS)):
        if value not in choices:
            raise ValueError(f'{name}: {label}={value!r} is unknown; expected one of {list(choices)}')
    if pool is None and scaling != 1:
        raise ValueError(f'{name}: scaling={scaling!r} has nothing to scale where pool=None; expected 1')


def _check_direction(name, xz, way, direction):
    """Refuse what does not fit `xz`."""
    channels = xz.shape[3] // 2
    check_tensor(name, f'{way}.conv_weight', direction.conv_weight, 3, '(D, 1, k)')
    check_tensor(name, f'{way}.dt_weight', direction.dt_weight, 2, '(D, R)')
    check_tensor(name, f'{way}.A', direction.A, 2, '(D, N)')
    width, rank, states = direction.conv_weight.shape[2], direction.dt_weight.shape[1], direction.A.shape[1]
    if 0 in (width, rank, states):
        raise ValueError(
            f'{name}: {way}.conv_weight has shape {tuple(direction.conv_weight.shape)}, {way}.dt_weight '
            f'{tuple(direction.dt_weight.shape)}, {way}.A {tuple(direction.A.shape)}; k, R and N may not be 0'
        )
    shapes = Direction(
        conv_weight={'D': channels, '1': 1, 'k': width},
        conv_bias={'D': channels},
        x_proj_weight={'R + 2N': rank + 2 * states, 'D': channels},
        dt_weight={'D': channels, 'R': rank},
        dt_bias={'D': channels},
        A={'D': channels, 'N': states},
        Ds={'D': channels},
    )
    for field, value, sizes in zip(Direction._fields, direction, shapes, strict=True):
        check_like(name, f'{way}.{field}', value, sizes, 'xz', xz)
        check_parameter_dtype(name, 'xz', xz, **{f'{way}.{field}': value})


def _fake(xz, *others):
    return xz.new_empty((*xz.shape[:3], xz.shape[3] // 2))


def _structured(arguments):
    """An operator's flat arguments as `xz, directions, norm_weight, norm_bias, *options`."""
    xz, *tensors = arguments[: 2 * _COUNT + 1]
    return xz, (tuple(tensors[:_COUNT]), tuple(tensors[_COUNT:])), *arguments[2 * _COUNT + 1 :]


_scan = registration.CustomOperator(
    _operator,
    'Tensor xz, '
    + ', '.join(f'Tensor {way}_{field}' for way in _WAYS for field in Direction._fields)
    + ', Tensor? norm_weight, Tensor? norm_bias',
    _fake,
    options='str axis, str? pool, float scaling, float eps',
    forward=lambda module, *arguments: module.forward(*_structured(arguments)),
    backward=lambda module, dout, *arguments: module.backward(dout, *_structured(arguments)),
)
