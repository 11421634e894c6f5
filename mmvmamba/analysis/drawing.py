"""Pictures of what the other modules measure: each function saves one. Only this module needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .receptive_field import covered

if TYPE_CHECKING:
    from .activation import Contributions

_FOOT = 1e-6  # of the colour scale of receptive fields


def _figure(size: tuple[float, float]):
    """An empty figure, `size` in inches, that needs no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout='constrained')


def _save(figure, path: Path, dpi: int = 110) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)


def contributions(found: Contributions, image: np.ndarray, query: tuple[int, int], path: Path) -> None:
    """Save an overlay per route and summed: the plain products above, the decay-weighted contributions below.

    Colours are square roots, so that weak ones show too, of the largest in the same four routes, or in the same sum.
    The query's own contribution, which outshines all others, is left out of that. What contributes nothing is the bare
    image.

    Args:
        found: of one query.
        image: `(H, W, 3)`, RGB, 0 to 255.
        query: row and column of the patch.
        path: picture to write.
    """
    from matplotlib import colormaps

    weighted = (found.weights * found.values).abs().sum(3)
    rows = {'C·B alone': found.products.abs(), 'contribution, with decay': weighted}
    titles = [*found.routes, 'sum of the routes']
    height, width = image.shape[:2]
    patch = height / weighted.shape[1], width / weighted.shape[2]
    grey = np.repeat(image.mean(2, keepdims=True), 3, 2) / 255
    figure = _figure((15, 2 * 2.9 * height / width + 0.9))
    for axes, (label, maps) in zip(figure.subplots(2, 5), rows.items(), strict=True):
        others = maps.clone()
        others[:, query[0], query[1]] = 0
        largest = [others.max().item()] * 4 + [others.sum(0).max().item()]
        axes[0].set_ylabel(label)
        for axis, title, values, top in zip(axes, titles, [*maps, maps.sum(0)], largest, strict=True):
            strength = np.sqrt((values.numpy() / (top or 1)).clip(0, 1))
            axis.imshow(grey)
            axis.imshow(
                colormaps['plasma'](strength),
                alpha=0.85 * strength,
                extent=(0, width, height, 0),
                interpolation='nearest',
            )
            axis.plot((query[1] + 0.5) * patch[1], (query[0] + 0.5) * patch[0], 'w*', markersize=12, mec='k')
            axis.set(xticks=[], yticks=[])
            axis.set_title(title, fontsize=11)
    _save(figure, path, dpi=100)


def receptive_fields(fields: dict[str, np.ndarray], path: Path) -> None:
    """Save fields side by side, with one logarithmic colour scale for all; what has no influence at all is grey."""
    from matplotlib.colors import LogNorm

    figure = _figure((3.2 * len(fields) + 1, 4.0))
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    for axis, (name, field) in zip(axes, fields.items(), strict=True):
        shown = np.ma.masked_equal(np.where(field > 0, np.maximum(field, _FOOT), 0), 0)
        picture = axis.imshow(shown, norm=LogNorm(_FOOT, 1), cmap='magma', interpolation='nearest')
        axis.set_facecolor('0.7')
        axis.set(xticks=[], yticks=[], xlabel=f'{covered(field, 0):.0%} reached, {covered(field):.0%} above 1/1000')
        axis.set_title(name, fontsize=11)
    figure.colorbar(picture, ax=axes, label='influence on the centre, of the largest', shrink=0.8)
    _save(figure, path, dpi=100)


def scaling(sides: list[int], curves: dict[str, tuple[list, list]], path: Path, title: str) -> None:
    """Save time and memory over the number of pixels.

    Args:
        sides: of the square images, in pixels.
        curves: name to seconds an image and MiB above the weights, of every side; NaN where there is none.
        path: picture to write.
        title: above it.
    """
    figure = _figure((10, 4))
    axes = figure.subplots(1, 2)
    pixels = [side**2 / 1e6 for side in sides]
    for axis, index, label in zip(
        axes, (0, 1), ('seconds per image', 'peak memory above the weights, MiB'), strict=True
    ):
        for name, values in curves.items():
            axis.plot(pixels, values[index], marker='o', label=name)
        axis.set(xlabel='megapixels', ylabel=label, ylim=(0, None), xlim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title)
    _save(figure, path)


def speedups(sides: list[int], ratios: dict[str, list[float]], path: Path, title: str) -> None:
    """Save how many times faster pooled networks are than those that scan every token, by name, over sides."""
    figure = _figure((5, 3.6))
    axis = figure.subplots()
    for arch, values in ratios.items():
        axis.plot(sides, values, marker='o', label=arch)
    axis.set(xlabel='pixels a side', ylabel='times faster than pool=None', ylim=(0, None))
    axis.set_title(title, fontsize=10)
    axis.legend()
    axis.grid(alpha=0.3)
    _save(figure, path)


def classifiers(rows: list[dict], path: Path, where: str) -> None:
    """Save throughput here and, if there are any, as published, and GFLOPs, over sizes.

    Args:
        rows: of `classifier_benchmark.scale`.
        path: picture to write.
        where: device and batch of the rows, in words.
    """
    theirs = [key for key in rows[0] if key.startswith('published images/s') and any(row[key] != '' for row in rows)]
    panels = {'images/s': f'images/s here ({where})'} | {key: key for key in theirs} | {'GFLOPs': 'GFLOPs'}
    figure = _figure((4.5 * len(panels), 4.5))
    names = list(dict.fromkeys(row['model'] for row in rows))
    for axis, (key, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for number, name in enumerate(names):
            points = [(row['side'], float(row[key])) for row in rows if row['model'] == name and row[key] != '']
            if points:
                style = dict(linestyle='--', marker='x') if key in theirs else dict(marker='o')
                axis.plot(*zip(*points, strict=True), color=f'C{number}', label=name, **style)
        axis.set(xlabel='pixels a side', yscale='log')
        axis.set_xticks(sorted({row['side'] for row in rows}))
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3, which='both')
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=4, fontsize=8)
    _save(figure, path)
