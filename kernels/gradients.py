"""Gradients at the boundary of a custom operator, which returns tensors only: an absent one becomes an empty one."""

import torch

from .arguments import compute_dtype


def as_inputs(grads, tensors) -> tuple[torch.Tensor, ...]:
    """Give gradients the dtype of their tensors, dense; where the tensor is None the gradient stays the empty one."""
    return tuple(
        grad if tensor is None or (grad.dtype == tensor.dtype and grad.is_contiguous()) else _as(grad, tensor.dtype)
        for grad, tensor in zip(grads, tensors, strict=True)
    )


def _as(grad, dtype):
    return grad.to(dtype, memory_format=torch.contiguous_format).contiguous()


def apart(tensors) -> tuple[torch.Tensor, ...]:
    """The tensors, copied where they are only part of their memory: an operator's results must not share it."""
    return tuple(t if t.untyped_storage().nbytes() == t.nbytes else t.clone() for t in tensors)


def empty_like_inputs(first: torch.Tensor, *others: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Shapes and dtypes of what `as_inputs` returns, for an operator's fake implementation."""
    return tuple(
        first.new_empty(0, dtype=compute_dtype(first)) if tensor is None else tensor.new_empty(tensor.shape)
        for tensor in (first, *others)
    )


def as_autograd(grads, tensors) -> tuple[torch.Tensor | None, ...]:
    """Replace the empty gradients of absent tensors by None."""
    return tuple(None if tensor is None else grad for grad, tensor in zip(grads, tensors, strict=True))
