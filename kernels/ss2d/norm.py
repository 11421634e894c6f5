"""SS2D followed by what always follows it: layer normalisation in float32 and, in the vanilla model, the gate."""

import torch
from torch.nn import functional as F

from .. import dispatch, registration
from ..arguments import case_of, check_like, check_number, compute_dtype, has_passed, note_passed
from .op import TENSORS, check_arguments, implementations, ss2d
from .routes import CASCADE


def ss2d_norm(
    x,
    x_proj_weight,
    dt_projs_weight,
    dt_projs_bias,
    As,
    Ds,
    norm_weight,
    norm_bias,
    gate=None,
    *,
    eps=1e-5,
    routes='cross',
    backend='auto',
):
    """`layer_norm(ss2d(x, ...)) * silu(gate)`: the sum of the routes stays float32 until it is normalised.

    Args:
        x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes, backend: as for `ss2d`.
        norm_weight, norm_bias: `(D,)`.
        gate: `(B, H, W, D)` before its SiLU, or None for no gate.
        eps: added to the variance.

    Returns:
        `(B, H, W, D)` in the dtype of x: half in, float32 inside, half out.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        BackendUnavailableError: the backend asked for cannot run here.
    """
    name = 'ss2d_norm'
    parameters = (x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds)
    tensors = (x, *parameters, norm_weight, norm_bias, gate)
    case = case_of(name, tensors, eps, routes)
    if not has_passed(case):
        check_arguments(name, x, *parameters, routes)
        for label, value in (('norm_weight', norm_weight), ('norm_bias', norm_bias)):
            check_like(name, label, value, {'D': x.shape[3]}, 'x', x)
        if gate is not None:
            check_like(name, 'gate', gate, dict(zip('BHWD', x.shape, strict=True)), 'x', x)
        check_number(name, 'eps', eps)
        note_passed(case)
    chosen = dispatch.choose('ss2d', backend, x.device.type, x.dtype)
    # between its halves a cascade normalises by itself; a gate of another dtype promotes the result
    if chosen in ('triton', 'auto') and routes != CASCADE and (gate is None or gate.dtype == x.dtype):
        return _fused(*tensors, float(eps), routes, registration.needs_gradient(tensors), chosen)
    y = ss2d(x, *parameters, routes=routes, backend=chosen)
    with dispatch.full_precision(x.device):
        return _normalised(y, norm_weight, norm_bias, gate, eps, x.dtype)


def _normalised(total, norm_weight, norm_bias, gate, eps, dtype):
    """What follows the sum of the routes, in PyTorch."""
    weight, bias = norm_weight.to(total.dtype), norm_bias.to(total.dtype)
    y = F.layer_norm(total, total.shape[-1:], weight, bias, eps).to(dtype)
    return y if gate is None else y * F.silu(gate)


def _route_dtype(x):
    return torch.bfloat16 if x.dtype == torch.bfloat16 else compute_dtype(x)


def _fake(x, *others):
    trains = others[-1]
    return x.new_empty(x.shape), x.new_empty(x.shape if trains else 0, dtype=_route_dtype(x))


def _forward(module, *arguments):
    """The result and, if a backward pass may follow (`trains`, the last one), the sum of the routes; else no number."""
    if hasattr(module, 'forward_norm'):
        return module.forward_norm(*arguments)
    *scan, norm_weight, norm_bias, gate, eps, routes, trains = arguments
    x = scan[0]
    total = module.forward(*scan, routes)
    y = _normalised(total, norm_weight, norm_bias, gate, eps, x.dtype)
    return y.contiguous(), total.to(_route_dtype(x)) if trains else total.new_empty(0, dtype=_route_dtype(x))


def _backward(module, dy, total, *arguments):
    *scan, norm_weight, norm_bias, gate, eps, routes, _ = arguments
    if total.shape != dy.shape:
        raise RuntimeError(
            'ss2d_norm: a backward pass through a result computed with trains=False, which keeps nothing for it; '
            'call mmvmamba.kernels.ss2d_norm, which sets it, or pass True'
        )
    if hasattr(module, 'backward_norm'):
        return module.backward_norm(dy, total, *scan, norm_weight, norm_bias, gate, eps, routes)
    dtype = compute_dtype(dy)
    weight, bias, routes_sum = norm_weight.to(dtype), norm_bias.to(dtype), total.to(dtype)
    shape = total.shape[-1:]
    y, mean, scale = torch.native_layer_norm(routes_sum, shape, weight, bias, eps)
    dgate = dy.new_empty(0)
    if gate is not None:
        dgate = torch.ops.aten.silu_backward(dy * y.to(dy.dtype), gate)
        dy = dy * F.silu(gate)
    every = [True] * 3
    grads = torch.ops.aten.native_layer_norm_backward(dy.to(dtype), routes_sum, shape, mean, scale, weight, bias, every)
    return *module.backward(grads[0], *scan, routes), *grads[1:], dgate


_fused = registration.CustomOperator(
    implementations,
    f'{TENSORS}, Tensor norm_weight, Tensor norm_bias, Tensor? gate',
    _fake,
    options='float eps, str routes, bool trains',
    name='ss2d_norm',
    forward=_forward,
    backward=_backward,
    keeps=True,
)
