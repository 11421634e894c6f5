"""The effective receptive field: how much each input pixel moves the centre of a feature map."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn


def effective_receptive_field(model: nn.Module, images: Iterable[torch.Tensor], stage: int = -1) -> np.ndarray:
    """Mean absolute gradient of the centre of a backbone's map with respect to the input.

    Args:
        model: a backbone that returns a sequence of maps `(B, C, H, W)`.
        images: batches `(B, 3, H, W)` of one size.
        stage: which of the maps.

    Returns:
        `(H, W)`, non-negative, its largest value 1 (all 0 if nothing reaches the centre).

    Source: Luo et al., "Understanding the effective receptive field", arXiv 1701.04128.
    """
    training = model.training
    model.train(False)
    total = None
    try:
        for batch in images:
            batch = batch.clone().requires_grad_()
            out = model(batch)[stage]
            centre = out[:, :, out.shape[2] // 2, out.shape[3] // 2]
            (grad,) = torch.autograd.grad(torch.relu(centre).sum(), batch)
            field = grad.abs().sum((0, 1)).double()
            total = field if total is None else total + field
    finally:
        model.train(training)
    if total is None:
        raise ValueError('effective_receptive_field: images is empty; expected at least one batch (B, 3, H, W)')
    largest = total.max().item()
    return (total / largest if largest > 0 else total).cpu().numpy()


def covered(field: np.ndarray, threshold: float = 1e-3) -> float:
    """Share of the pixels whose influence exceeds `threshold` of the largest; with 0, of those with any at all."""
    return float((field > threshold).mean())
