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
_planes_operator = dispatch.Operator(
    'pooled_scan_planes',
    __package__,
    {'reference': 'reference', 'torch': 'torch_blocked', 'cpu': 'cpu', 'triton': 'triton_scan'},
)
# Triton's kernels know lines all of whose tokens are there
_kept_operator = dispatch.Operator(
    'pooled_scan_kept', __package__, {'reference': 'reference', 'torch': 'kept', 'cpu': 'kept_cpu'}
)

AXES = ('row', 'column')
POOLS = ('mean', 'max', None)
PLANES = ('inner', 'outer')


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
    planes='inner',
    eps=1e-5,
    backend='auto',
):
    """Scan the pooled lines of a grid in both directions: all of FastVim's mixer between its two outer projections.

    A line is a row or a column. Each direction walks all tokens line by line (`back` from the last to the first):
    causal depthwise convolution and SiLU give `u`; every line is pooled to one token; the short sequence is projected
    by `x_proj_weight` to `(dt_low_rank, Bs, Cs)`, its step is `dt_weight @ dt_low_rank` with bias `dt_bias`, and
    `selective_scan` runs over it; each line's result is added to `Ds * u` of all its tokens. The mean of both
    directions, layer-normalised, times `silu(z)` is the result. Float32 inside (float64 for float64).

    A grid may have K tokens a place, one for each plane (channel) of an image. The axis that is pooled is one of the
    grid's two all the same; planes are never pooled.

    Args:
        xz: `(B, H, W, 2D)` or, with planes, `(B, H, W, K, 2D)`: the tokens x, and behind them the gate z before its
            SiLU.
        forth, back: parameters of the two directions, a `Direction` each.
        norm_weight, norm_bias: `(D,)`, or both None for no norm.
        axis: 'row' scans H rows, 'column' scans W columns; never a transposed copy.
        pool: 'mean' or 'max' over a line, or None to scan all tokens (bidirectional Mamba, the unpooled baseline).
        scaling: factor of the pooled tokens (masked pre-training: the kept fraction); 1 where nothing is pooled.
        planes: 'inner': the planes of a place follow one another in the sequence; 'outer': plane after plane. Means
            nothing without planes.
        eps: added to the variance.
        backend: 'auto', 'triton', 'cpu', 'torch' or 'reference'; 'auto' obeys MMVMAMBA_BACKEND.

    Returns:
        `(B, H, W, D)` or `(B, H, W, K, D)` in the dtype of xz.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        BackendUnavailableError: the backend asked for cannot run here.

    Source: Kapse et al., "Fast Vision Mamba", arXiv 2502.00594, section 3.
    """
    operator = _planes_operator if isinstance(xz, torch.Tensor) and xz.ndim == 5 else _operator
    tensors = (xz, *_flat('pooled_scan', forth, back), norm_weight, norm_bias)
    options = (axis, pool, scaling, eps, planes)
    case = case_of(operator.name, tensors, *options)
    if not has_passed(case):
        _check('pooled_scan', tensors, *options)
        note_passed(case)
    chosen = dispatch.choose(operator.name, backend, xz.device.type, xz.dtype)
    options = (axis, pool, float(scaling), float(eps), *([planes] if xz.ndim == 5 else []))
    if chosen == 'reference':
        with dispatch.full_precision(xz.device):
            return reference.pooled_scan(*_structured(tensors), *options)
    return (_scan_planes if xz.ndim == 5 else _scan)(*tensors, *options, chosen)


def pooled_scan_kept(
    xz,
    places,
    grid,
    forth,
    back,
    norm_weight=None,
    norm_bias=None,
    *,
    axis='row',
    scaling=1.0,
    consistent=False,
    eps=1e-5,
    backend='auto',
):
    """`pooled_scan` over those tokens of a grid that a mask has kept (masked pre-training), with means of lines.

    The convolutions run over the kept tokens as if they were neighbours. A line's sum is divided by its full length,
    however many of its tokens were kept; a line without any stays in the scanned sequence as zeros.

    Args:
        xz: `(B, M, 2D)`, M of the H * W tokens of every image, in any order.
        places: `(B, M)` int64, where each lies: row * W + column, no place twice. Not checked, as that would make the
            host wait for a GPU.
        grid: `(H, W)`.
        forth, back, norm_weight, norm_bias, axis, scaling, eps, backend: as for `pooled_scan`; no triton yet.
        consistent: False is the published rule for `back`: its j-th token, counted from the end of the sequence, is
            pooled into and gets the result of the line of the j-th token counted from the start. Released weights were
            trained with it. True: every token's own line. Equal where every token was kept.

    Returns:
        `(B, M, D)` in the dtype and the order of xz.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        BackendUnavailableError: the backend asked for cannot run here.

    Source: Kapse et al., "Fast Vision Mamba", arXiv 2502.00594, and its authors' code (FastMaskVim).
    """
    name = 'pooled_scan_kept'
    # sizes are tensors where torch.jit traces; its graph keeps those of the example
    grid = tuple(int(side) if isinstance(side, torch.Tensor) else side for side in grid)
    tensors = (xz, *_flat(name, forth, back), norm_weight, norm_bias)
    options = (axis, 'mean', scaling, eps, 'inner')
    case = case_of(name, (*tensors, places), *options, grid)
    if not has_passed(case):
        _check_kept(name, xz, places, grid)
        _check(name, tensors, *options)
        note_passed(case)
    chosen = dispatch.choose(name, backend, xz.device.type, xz.dtype)
    arguments = (*grid, axis, float(scaling), float(eps), bool(consistent))
    if chosen == 'reference':
        with dispatch.full_precision(xz.device):
            return reference.pooled_scan_kept(*_structured_kept((xz, places, *tensors[1:], *arguments)))
    return _scan_kept(xz, places, *tensors[1:], *arguments, chosen)


def _check_kept(name, xz, places, grid):
    check_tensor(name, 'xz', xz, 3, '(B, M, 2D)')
    if not isinstance(places, torch.Tensor) or places.dtype != torch.int64:
        came = places.dtype if isinstance(places, torch.Tensor) else type(places).__name__
        raise TypeError(f'{name}: places must be a tensor (B, M) of int64, got {came}')
    if places.shape != xz.shape[:2] or places.device != xz.device:
        raise ValueError(
            f'{name}: places has shape {tuple(places.shape)} on {places.device}; expected (B, M) = '
            f'{tuple(xz.shape[:2])} on {xz.device} to fit xz'
        )
    if len(grid) != 2 or not all(isinstance(side, (int, torch.SymInt)) and side > 0 for side in grid):
        raise ValueError(f'{name}: grid={grid!r}; expected (H, W)')
    if xz.shape[1] > grid[0] * grid[1]:
        raise ValueError(f'{name}: xz has {xz.shape[1]} tokens an image, more than the {grid[0]} x {grid[1]} of grid')


_LAYOUTS = {3: '(B, M, 2D)', 4: '(B, H, W, 2D)', 5: '(B, H, W, K, 2D)'}


def _check(name, tensors, axis, pool, scaling, eps, planes):
    xz, directions, norm_weight, norm_bias = _structured(tensors)
    _check_options(name, axis, pool, scaling, planes)
    if name == 'pooled_scan':
        check_tensor(name, 'xz', xz, (4, 5), f'{_LAYOUTS[4]} or {_LAYOUTS[5]}')
    if 0 in xz.shape[1:] or xz.shape[-1] % 2:
        raise ValueError(
            f'{name}: xz has shape {tuple(xz.shape)}; expected {_LAYOUTS[xz.ndim]}, of which only the batch may be '
            f'empty'
        )
    for way, direction in zip(_WAYS, directions, strict=True):
        _check_direction(name, xz, way, Direction(*direction))
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError(f'{name}: one of norm_weight and norm_bias is None; give both or neither')
    for label, value in (('norm_weight', norm_weight), ('norm_bias', norm_bias)):
        if value is not None:
            check_like(name, label, value, {'D': xz.shape[-1] // 2}, 'xz', xz)
    check_parameter_dtype(name, 'xz', xz, norm_weight=norm_weight, norm_bias=norm_bias)
    check_number(name, 'scaling', scaling)
    check_number(name, 'eps', eps)


def _flat(name, forth, back) -> tuple:
    """The tensors of both directions."""
    for way, direction in zip(_WAYS, (forth, back), strict=True):
        if not isinstance(direction, tuple) or len(direction) != _COUNT:
            raise TypeError(f'{name}: {way} must be a Direction of {_COUNT} tensors, got {type(direction).__name__}')
    return (*forth, *back)


def _check_options(name, axis, pool, scaling, planes):
    for label, value, choices in (('axis', axis, AXES), ('pool', pool, POOLS), ('planes', planes, PLANES)):
        if value not in choices:
            raise ValueError(f'{name}: {label}={value!r} is unknown; expected one of {list(choices)}')
    if pool is None and scaling != 1:
        raise ValueError(f'{name}: scaling={scaling!r} has nothing to scale where pool=None; expected 1')


def _check_direction(name, xz, way, direction):
    """Refuse what does not fit `xz`."""
    channels = xz.shape[-1] // 2
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
    return xz.new_empty((*xz.shape[:-1], xz.shape[-1] // 2))


def _structured(arguments):
    """An operator's flat arguments as `xz, directions, norm_weight, norm_bias, *options`."""
    xz, *tensors = arguments[: 2 * _COUNT + 1]
    return xz, (tuple(tensors[:_COUNT]), tuple(tensors[_COUNT:])), *arguments[2 * _COUNT + 1 :]


def _structured_kept(arguments):
    """The same with the places behind `xz`."""
    xz, places, *others = arguments
    xz, *others = _structured((xz, *others))
    return xz, places, *others


_PARAMETERS = (
    ', '.join(f'Tensor {way}_{field}' for way in _WAYS for field in Direction._fields)
    + ', Tensor? norm_weight, Tensor? norm_bias'
)


def _registered(operator, tensors, options, structured=_structured):
    return registration.CustomOperator(
        operator,
        f'{tensors}, {_PARAMETERS}',
        _fake,
        options=options,
        forward=lambda module, *arguments: module.forward(*structured(arguments)),
        backward=lambda module, dout, *arguments: module.backward(dout, *structured(arguments)),
    )


_scan = _registered(_operator, 'Tensor xz', 'str axis, str? pool, float scaling, float eps')
_scan_planes = _registered(_planes_operator, 'Tensor xz', 'str axis, str? pool, float scaling, float eps, str planes')
_scan_kept = _registered(
    _kept_operator,
    'Tensor xz, Tensor places',
    'SymInt height, SymInt width, str axis, float scaling, float eps, bool consistent',
    _structured_kept,
)
