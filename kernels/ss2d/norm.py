"""SS2D followed by what always follows it: layer normalisation in float32 and, in the vanilla model, the gate."""

from torch.nn import functional as F

from .. import dispatch
from ..arguments import check_like
from .op import ss2d


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
    y = ss2d(x, x_proj_weight, dt_projs_weight, dt_projs_bias, As, Ds, routes=routes, backend=backend)
    for label, value in (('norm_weight', norm_weight), ('norm_bias', norm_bias)):
        check_like(name, label, value, {'D': x.shape[3]}, 'x', x)
    with dispatch.full_precision(x.device):
        y = F.layer_norm(y, (x.shape[3],), norm_weight.to(y.dtype), norm_bias.to(y.dtype), eps).to(x.dtype)
    if gate is not None:
        check_like(name, 'gate', gate, dict(zip('BHWD', x.shape, strict=True)), 'x', x)
        y = y * F.silu(gate)
    return y
