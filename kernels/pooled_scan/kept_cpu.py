"""The pooled scan over kept tokens on the host: the compiled scan, in PyTorch's passes."""

import torch

from . import kept
from .cpu import COMPILED


@torch.no_grad()
def forward(*arguments):
    """See `mmvmamba.kernels.pooled_scan_kept`."""
    return kept.forward(*arguments, scans=COMPILED)


@torch.no_grad()
def backward(*arguments):
    """See `kept.backward`."""
    return kept.backward(*arguments, scans=COMPILED)
