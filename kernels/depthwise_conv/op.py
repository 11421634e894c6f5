"""Depthwise convolution + bias + SiLU on a channels-last grid: the step before SS2D."""

import torch

from .. import dispatch, gradients
from ..arguments import check_like, check_same_dtype, check_tensor
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
    chosen = dispatch.choose(name, backend, x.device.type, x.dtype)
    if chosen != 'triton':
        if not torch.is_autocast_enabled(x.device.type):  # which would convert them
            check_same_dtype(name, 'x', x, weight=weight, **({} if bias is None else {'bias': bias}))
        return torch_conv.depthwise_conv_silu(x, weight, bias)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return _fused(x, weight, bias)


_TENSORS = 'Tensor x, Tensor weight, Tensor? bias'


@torch.library.custom_op('mmvmamba::depthwise_conv_silu', mutates_args=(), schema=f'({_TENSORS}) -> Tensor')
def _fused(x, weight, bias):
    return _operator.load('triton').forward(x, weight, bias)


@_fused.register_fake
def _(x, weight, bias):
    return x.new_empty(x.shape)


@torch.library.custom_op(
    'mmvmamba::depthwise_conv_silu_backward',
    mutates_args=(),
    schema=f'(Tensor dy, {_TENSORS}) -> (Tensor, Tensor, Tensor)',
)
def _backward(dy, x, weight, bias):
    return gradients.as_inputs(_operator.load('triton').backward(dy, x, weight, bias), (x, weight, bias))


@_backward.register_fake
def _(dy, x, weight, bias):
    return gradients.empty_like_inputs(x, weight, bias)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _autograd(ctx, dy):
    tensors = ctx.saved_tensors
    return gradients.as_autograd(_backward(dy.contiguous(), *tensors), tensors)


_fused.register_autograd(_autograd, setup_context=_setup_context)
