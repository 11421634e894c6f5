"""SS2D followed by what always follows it: layer normalisation in float32 and, in the vanilla model, the gate."""

import torch
from torch.nn import functional as F

from .. import dispatch, gradients
from ..arguments import check_like
from .op import _operator as _scan
from .op import check_arguments, ss2d
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
    check_arguments(name, x, *parameters, routes)
    for label, value in (('norm_weight', norm_weight), ('norm_bias', norm_bias)):
        check_like(name, label, value, {'D': x.shape[3]}, 'x', x)
    if gate is not None:
        check_like(name, 'gate', gate, dict(zip('BHWD', x.shape, strict=True)), 'x', x)
    chosen = dispatch.choose('ss2d', backend, x.device.type, x.dtype)
    # between its halves a cascade normalises by itself; a gate of another dtype promotes the result
    if chosen == 'triton' and routes != CASCADE and (gate is None or gate.dtype == x.dtype):
        tensors = (x, *parameters, norm_weight, norm_bias, gate)
        trains = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        y, _ = _fused(*tensors, eps, routes, trains)
        return y
    y = ss2d(x, *parameters, routes=routes, backend=chosen)
    with dispatch.full_precision(x.device):
        y = F.layer_norm(y, (x.shape[3],), norm_weight.to(y.dtype), norm_bias.to(y.dtype), eps).to(x.dtype)
    return y if gate is None else y * F.silu(gate)


_TENSORS = (
    'Tensor x, Tensor x_proj_weight, Tensor dt_projs_weight, Tensor dt_projs_bias, Tensor As, Tensor Ds, '
    'Tensor norm_weight, Tensor norm_bias, Tensor? gate'
)


def _route_dtype(x):
    return torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32


@torch.library.custom_op(
    'mmvmamba::ss2d_norm',
    mutates_args=(),
    schema=f'({_TENSORS}, float eps, str routes, bool trains) -> (Tensor, Tensor)',
)
def _fused(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, norm_weight, norm_bias, gate, eps, routes, trains):
    """The result and, if a backward pass may follow (`trains`), the sum of the routes; else an empty tensor."""
    tensors = (x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, norm_weight, norm_bias, gate)
    with dispatch.full_precision(x.device):
        return _scan.load('triton').forward_norm(*tensors, eps, routes, trains)


@_fused.register_fake
def _(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, norm_weight, norm_bias, gate, eps, routes, trains):
    return x.new_empty(x.shape), x.new_empty(x.shape if trains else 0, dtype=_route_dtype(x))


@torch.library.custom_op(
    'mmvmamba::ss2d_norm_backward',
    mutates_args=(),
    schema=f'(Tensor dy, Tensor total, {_TENSORS}, float eps, str routes) -> ({", ".join(["Tensor"] * 9)})',
)
def _backward(
    dy, total, x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, norm_weight, norm_bias, gate, eps, routes
):
    tensors = (x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, norm_weight, norm_bias, gate)
    with dispatch.full_precision(x.device):
        grads = _scan.load('triton').backward_norm(dy, total, *tensors, eps, routes)
    return gradients.as_inputs(grads, tensors)


@_backward.register_fake
def _(dy, total, x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, norm_weight, norm_bias, gate, eps, routes):
    return gradients.empty_like_inputs(
        x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, norm_weight, norm_bias, gate
    )


def _setup_context(ctx, inputs, output):
    *tensors, ctx.eps, ctx.routes, _ = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx, dy, _):
    total, *tensors = ctx.saved_tensors
    if dy is None:
        return (None,) * 12
    if total.shape != dy.shape:
        raise RuntimeError(
            'ss2d_norm: a backward pass through a result computed with trains=False, which keeps nothing for it; '
            'call mmvmamba.kernels.ss2d_norm, which sets it, or pass True'
        )
    grads = _backward(dy.contiguous(), total, *tensors, ctx.eps, ctx.routes)
    return *gradients.as_autograd(grads, tensors), None, None, None


_fused.register_autograd(_autograd, setup_context=_setup_context)
