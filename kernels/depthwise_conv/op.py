"""Depthwise convolution + bias + SiLU on a channels-last grid: the step before SS2D."""

from .. import dispatch
from ..arguments import check_like, check_tensor

_PYTORCH = 'torch_conv'
_operator = dispatch.Operator(
    'depthwise_conv_silu', __package__, dict.fromkeys(('cpu', 'torch', 'reference'), _PYTORCH)
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
    if size % 2 == 0:
        raise ValueError(f'{name}: weight has shape {tuple(weight.shape)}; expected (D, 1, k, k) with k odd')
    check_like(name, 'weight', weight, {'D': x.shape[3], '1': 1, 'k': size, 'k ': size}, 'x', x)
    if bias is not None:
        check_like(name, 'bias', bias, {'D': x.shape[3]}, 'x', x)
    chosen = dispatch.choose(name, backend, x.device.type)
    return _operator.load(chosen).depthwise_conv_silu(x, weight, bias)
