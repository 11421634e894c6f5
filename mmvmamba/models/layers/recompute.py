"""Blocks that are computed again in the backward pass, so that their activations need not be kept."""

import torch
from torch.utils.checkpoint import checkpoint

_is_exporting = getattr(torch.compiler, 'is_exporting', lambda: False)  # PyTorch 2.4 has none


def recomputed(block, *inputs: torch.Tensor | None):
    """Return `block(*inputs)`; a backward pass through it recomputes it.

    Traces and exported programs, which can hold no such pass, get the block as it is.
    """
    if not inputs[0].requires_grad or torch.jit.is_tracing() or _is_exporting():
        return block(*inputs)
    return checkpoint(block, *inputs, use_reentrant=False)
