"""Depthwise convolution + bias + SiLU on a channels-last grid: the step before SS2D."""

import torch

from .. import dispatch, registration
from ..arguments import case_of, check_like, check_same_dtype, check_tensor, has_passed, note_passed
from . import torch_conv

_PYTORCH = 'torch_conv'
_operator = dispatch.Operator(
    'depthwise_conv_silu',
    __package__,
    {'triton': 'triton_conv', **dict.fromkeys(('cpu', 'torch', 'reference'), _PYTORCH)},
)


def depthwise_conv_silu(x, weight, bias=None, *, backend='auto'):
    """Convolve every channel with its own odd-sized square filter ("same" zero padding), add the bias, apply SiLU.

    Args:
        x: `(B, H, W, D)`.
        weight: `(D, 1, k, k)`, k odd.
        bias: `(D,)`, or None.
        backend: as for `ss2d`.

    Returns:
        `(B, H, W, D)` in the dtype of x (under autocast: autocast's).

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        BackendUnavailableError: the backend asked for cannot run here.
    """
    name = 'depthwise_conv_silu'
    case = case_of(name, (x, weight, bias))
    if not has_passed(case):
        _check(name, x, weight, bias)
        note_passed(case)
    chosen = dispatch.choose(name, backend, x.device.type, x.dtype)
    if chosen not in ('triton', 'auto'):
        if not dispatch.autocasts(x.device):  # which would convert them
            check_same_dtype(name, 'x', x, weight=weight, **({} if bias is None else {'bias': bias}))
        return torch_conv.depthwise_conv_silu(x, weight, bias)
    if dispatch.autocasts(x.device):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return _fused(x, weight, bias, chosen)


def _check(name, x, weight, bias):
    check_tensor(name, 'x', x, 4, '(B, H, W, D)')
    check_tensor(name, 'weight', weight, 4, '(D, 1, k, k)')
    size = weight.shape[-1]
    if 0 in x.shape[1:]:
        raise ValueError(f'{name}: x has shape {tuple(x.shape)}; only the batch may be empty, H, W and D may not')
    if size % 2 == 0:
        raise ValueError(f'{name}: weight has shape {tuple(weight.shape)}; expected (D, 1, k, k) with k odd')
    check_like(name, 'weight', weight, {'D': x.shape[3], '1': 1, 'k': size, 'k ': size}, 'x', x)
    if bias is not None:
        check_like(name, 'bias', bias, {'D': x.shape[3]}, 'x', x)


def _forward(module, x, weight, bias):
    if module is not torch_conv:
        return module.forward(x, weight, bias)
    weight, bias = (None if t is None else t.to(x.dtype) for t in (weight, bias))
    return torch_conv.depthwise_conv_silu(x, weight, bias).contiguous()


def _backward(module, dy, *tensors):
    if module is not torch_conv:
        return module.backward(dy, *tensors)
    x, weight, bias = tensors
    inputs, filters = x.permute(0, 3, 1, 2), weight.to(x.dtype)
    size = filters.shape[3] // 2
    options = [1, 1], [size, size], [1, 1], False, [0, 0], filters.shape[0]
    z = torch.ops.aten.convolution(inputs, filters, None if bias is None else bias.to(x.dtype), *options)
    dz = torch.ops.aten.silu_backward(dy.permute(0, 3, 1, 2), z)
    sizes, mask = None if bias is None else [bias.shape[0]], [True, True, bias is not None]
    dx, dweight, dbias = torch.ops.aten.convolution_backward(dz, inputs, filters, sizes, *options, mask)
    return dx.permute(0, 2, 3, 1), dweight, dy.new_empty(0) if bias is None else dbias


_fused = registration.CustomOperator(
    _operator,
    'Tensor x, Tensor weight, Tensor? bias',
    lambda x, *others: x.new_empty(x.shape),
    forward=_forward,
    backward=_backward,
)
