"""The effective receptive field: how much each input pixel moves the centre of a feature map."""

from collections.abc import Iterable
from pathlib import Path

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


_FOOT = 1e-6  # of the colour scale


def draw(fields: dict[str, np.ndarray], path: Path) -> None:
    """Save fields side by side, with one logarithmic colour scale for all; what has no influence at all is grey."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(fields) + 1, 4.0), layout='constrained')
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    for axis, (name, field) in zip(axes, fields.items(), strict=True):
        shown = np.ma.masked_equal(np.where(field > 0, np.maximum(field, _FOOT), 0), 0)
        picture = axis.imshow(shown, norm=LogNorm(_FOOT, 1), cmap='magma', interpolation='nearest')
        axis.set_facecolor('0.7')
        axis.set(xticks=[], yticks=[], xlabel=f'{covered(field, 0):.0%} reached, {covered(field):.0%} above 1/1000')
        axis.set_title(name, fontsize=11)
    figure.colorbar(picture, ax=axes, label='influence on the centre, of the largest', shrink=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
