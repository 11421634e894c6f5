"""The selective scan on a GPU: the walks that SS2D takes along the rows, one a group, with ready time steps.

The kernels have channels as lanes and the operator's layout has positions last, so inputs and result are transposed
once each; SS2D, which the networks use, needs no transpose.
"""

import torch

from ..shared_triton.numerics import dense
from ..shared_triton.scan import Walks, scan
from ..shared_triton.scan_bwd import scan_backward


def _last(tensor):
    """`(B, C, L)` as `(B, L, C)`."""
    return dense(tensor.transpose(1, 2))


def _walks(u, delta, A, Bs, Cs, Ds, delta_bias, softplus) -> Walks:
    _, total, length = u.shape
    groups = Bs.shape[1]
    if length * max(total, 2 * groups * A.shape[1]) >= 1 << 31:
        raise ValueError(
            f'selective_scan: u has shape {tuple(u.shape)}; the triton backend indexes a sequence with 32 bits, K*D*L '
            "must stay below 2**31; use shorter sequences or backend='torch'"
        )
    zero = A.new_zeros(total, dtype=torch.float32)
    skip, bias = (zero if t is None else dense(t, torch.float32) for t in (Ds, delta_bias))
    return Walks(
        x=_last(u),
        projected=torch.cat([Bs, Cs], dim=2).permute(0, 3, 1, 2).contiguous(),
        ready=_last(delta),
        weight=zero.new_empty((groups, total // groups, 0)),
        bias=bias,
        skip=skip,
        A=dense(A, torch.float32),
        grid=(1, length),
        grouped=True,
        softplus=softplus,
    )


def forward(u, delta, A, Bs, Cs, Ds, delta_bias, softplus):
    """See `mmvmamba.kernels.selective_scan`; here Bs and Cs are `(B, K, N, L)`."""
    walks = _walks(u, delta, A, Bs, Cs, Ds, delta_bias, softplus)
    return scan(walks, torch.float32).transpose(1, 2).contiguous()


def backward(dy, u, delta, A, Bs, Cs, Ds, delta_bias, softplus):
    """Gradients in the order of `forward`'s tensors; empty where the tensor is None."""
    grads = scan_backward(_walks(u, delta, A, Bs, Cs, Ds, delta_bias, softplus), _last(dy), torch.float32)
    dBs, dCs = grads.projected.permute(0, 2, 3, 1).split(A.shape[1], dim=2)
    dD, dbias = (grad.new_empty(0) if t is None else grad for t, grad in ((Ds, grads.skip), (delta_bias, grads.bias)))
    return grads.x.transpose(1, 2), grads.ready.transpose(1, 2), grads.A, dBs, dCs, dD, dbias
