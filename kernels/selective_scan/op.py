"""The selective scan as a PyTorch operator: the public function, its checks, `torch.library` registration."""

import torch

from .. import dispatch, registration
from ..arguments import (
    case_of,
    check_like,
    check_parameter_dtype,
    check_same_dtype,
    check_tensor,
    compute_dtype,
    has_passed,
    note_passed,
)
from . import reference

_operator = dispatch.Operator(
    'selective_scan',
    __package__,
    {
        'reference': 'reference',
        'torch': 'torch_blocked',
        'cpu': 'cpu',
        'triton': 'triton_scan',
        dispatch.DECOMPOSED: dispatch.DECOMPOSED,
    },
)


def _fake(u, *others):
    return torch.empty(u.shape, dtype=compute_dtype(u), device=u.device)


_scan = registration.CustomOperator(
    _operator,
    'Tensor u, Tensor delta, Tensor A, Tensor Bs, Tensor Cs, Tensor? Ds, Tensor? delta_bias',
    _fake,
    options='bool softplus',
)


def selective_scan(u, delta, A, Bs, Cs, Ds=None, delta_bias=None, *, softplus=True, backend='auto'):
    """Selective state-space scan: `h_t = exp(dt_t A) h_{t-1} + dt_t Bs_t u_t`, `y_t = Cs_t . h_t + Ds u_t`.

    The time step is `dt = softplus(delta + delta_bias)`. State and result are float32 whatever the input
    (float64 for float64 input). Differentiable once in every tensor; the reference backend any number of times.

    Args:
        u, delta: `(B, K*D, L)`, input and time step before bias and softplus.
        A: `(K*D, N)`, negative for a decaying state.
        Bs, Cs: `(B, K, N, L)`, or `(B, N, L)` for K = 1; the D channels of a group share them.
        Ds: `(K*D,)` skip weights, or None.
        delta_bias: `(K*D,)`, or None.
        softplus: apply softplus to the time step. On by default, other than in Mamba's function.
        backend: 'auto', 'triton', 'cpu', 'torch' or 'reference'; 'auto' obeys MMVMAMBA_BACKEND.

    Returns:
        `(B, K*D, L)`, float32 or float64.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
        BackendUnavailableError: the backend asked for cannot run here.

    For users of `mamba_ssm.ops.selective_scan_interface.selective_scan_fn`:

        | there | here |
        |---|---|
        | `delta_softplus=False` by default | `softplus=True` by default: pass `softplus=False` |
        | B, C `(B, K, N, L)`, or `(B, N, L)` for K = 1 | `Bs`, `Cs`, the same |
        | B, C `(K*D, N)`, fixed over time | none: expand them to `(B, K*D, N, L)`, a group for each channel |
        | complex A, B, C | none: real only |
        | `D` | `Ds` |
        | `z=...`, the gate | none: multiply the result by `silu(z)` |
        | `return_last_state=True` | none |
        | result in the dtype of u | float32 (float64 for float64): `.to(u.dtype)` |
        | u and delta of any dtypes | one dtype for u, delta, Bs, Cs; A, Ds, delta_bias that one or float32 |

    Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752, alg. 2.
    """
    name = 'selective_scan'
    tensors = (u, delta, A, Bs, Cs, Ds, delta_bias)
    case = case_of(name, tensors)
    if not has_passed(case):
        _check(name, *tensors)
        note_passed(case)
    if Bs.ndim == 3:
        Bs, Cs = Bs[:, None], Cs[:, None]

    chosen = dispatch.choose(name, backend, u.device.type, u.dtype)
    if chosen == 'reference':
        with dispatch.full_precision(u.device):
            return reference.selective_scan(u, delta, A, Bs, Cs, Ds, delta_bias, softplus)
    return _scan(u, delta, A, Bs, Cs, Ds, delta_bias, bool(softplus), chosen)


def _check(name, u, delta, A, Bs, Cs, Ds, delta_bias):
    check_tensor(name, 'u', u, 3, '(B, K*D, L)')
    check_tensor(name, 'Bs', Bs, (3, 4), '(B, K, N, L) or (B, N, L)')
    check_tensor(name, 'A', A, 2, '(K*D, N)')
    batch, channels, length = u.shape
    states = A.shape[1]
    if length == 0 or channels == 0 or states == 0:
        raise ValueError(f'{name}: u has shape {tuple(u.shape)} and A {tuple(A.shape)}; only the batch may be empty')
    per_group = {'B': batch, 'N': states, 'L': length}
    if Bs.ndim == 4:
        per_group = {'B': batch, 'K': Bs.shape[1], 'N': states, 'L': length}
        if Bs.shape[1] == 0 or channels % Bs.shape[1]:
            raise ValueError(
                f'{name}: Bs has K = {Bs.shape[1]} groups, which does not divide the {channels} channels of u'
            )
    check_like(name, 'delta', delta, {'B': batch, 'K*D': channels, 'L': length}, 'u', u)
    check_like(name, 'A', A, {'K*D': channels, 'N': states}, 'u', u)
    check_like(name, 'Bs', Bs, per_group, 'u', u)
    check_like(name, 'Cs', Cs, per_group, 'u', u)
    for label, value in (('Ds', Ds), ('delta_bias', delta_bias)):
        if value is not None:
            check_like(name, label, value, {'K*D': channels}, 'u', u)
    check_same_dtype(name, 'u', u, delta=delta, Bs=Bs, Cs=Cs)
    check_parameter_dtype(name, 'u', u, A=A, Ds=Ds, delta_bias=delta_bias)
