"""Pictures of classified images: the likeliest classes of each with their probabilities, and right beside wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook

from mmvmamba.datasets.planes import read_planes
from mmvmamba.registry import HOOKS

OVERVIEW = 'right_and_wrong.png'
_SHORTEST = 320  # a side; text needs room
_COLUMNS, _ROWS = 6, 2  # of right pictures in the overview, and of wrong ones
_RIGHT, _WRONG = '#1a7f37', '#cf222e'


def name_of(classes: Sequence[str] | None, label: int) -> str:
    """A class in words; its number where no names are known."""
    return str(classes[label]) if classes is not None and label < len(classes) else f'class {label}'


def read_picture(path: str | Path) -> np.ndarray:
    """An image to look at, `(H, W, 3)`, uint8, blue first; one of many channels in false colours.

    Raises:
        DataError: of a file of many channels (`.npy`, a TIFF of several pages) that cannot be read.
    """
    path = Path(path)
    pages = cv2.imcount(str(path)) if path.suffix.lower() in ('.tif', '.tiff') else 1
    if path.suffix == '.npy' or pages > 1:
        return false_colours(read_planes(path))
    return mmcv.imread(str(path))


def false_colours(planes: np.ndarray) -> np.ndarray:
    """Give every channel a hue of its own and add them up, as microscopists overlay their stains.

    Where the sum is brighter than a picture can be, it keeps its hue rather than turning white.

    Args:
        planes: `(H, W, C)`, any numbers; a channel's brightest pixels (but one in five hundred) get its full colour.

    Returns:
        `(H, W, 3)`, uint8, blue first.
    """
    count = planes.shape[2]
    hues = np.stack([np.arange(count) * 360 / count, np.ones(count), np.ones(count)], axis=1)
    colours = cv2.cvtColor(hues[None].astype(np.float32), cv2.COLOR_HSV2BGR)[0]
    low, high = np.percentile(planes, (1, 99.8), axis=(0, 1))
    strength = ((planes - low) / np.maximum(high - low, 1e-6)).clip(0, 1)
    mixed = strength @ colours
    return (255 * mixed / np.maximum(mixed.max(2, keepdims=True), 1)).astype(np.uint8)


def likeliest(scores: torch.Tensor, count: int = 5) -> list[tuple[int, float]]:
    """The classes of the highest probabilities, the likeliest first.

    Args:
        scores: probability of each class `(K,)`.
        count: how many; all where there are fewer.
    """
    top = scores.float().topk(min(count, len(scores)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def draw(image: np.ndarray, sample, classes: Sequence[str] | None, path: Path) -> None:
    """Write an image with its five likeliest classes, and its true one where that is known.

    Args:
        image: `(H, W, 3)`, uint8, blue first, as `mmcv.imread` returns it.
        sample: mmpretrain's `DataSample` of it, with `pred_score`; not changed.
        classes: names by label, None if unknown.
        path: of the picture; its folder is made.
    """
    from mmpretrain.visualization import UniversalVisualizer

    shown = sample.clone()
    shown.set_pred_label(torch.tensor([label for label, _ in likeliest(sample.pred_score)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    UniversalVisualizer().visualize_cls(
        np.ascontiguousarray(image[..., ::-1]),
        shown,
        classes=classes,
        resize=max(_SHORTEST, min(image.shape[:2])),
        out_file=str(path),
    )


class _Judged(NamedTuple):
    path: str
    truth: int
    label: int
    probability: float


@HOOKS.register_module()
class ClassificationPictures(Hook):
    """In a test, draw every image as `draw` does, and an overview of right and wrong ones.

    mmpretrain's own hook draws what the network was given, cropped and with red and blue exchanged, and files of one
    name in several class folders over each other.

    Args:
        out_dir: folder; the pictures lie in it as `CLASS_FOLDER/NAME.png`, the overview as `right_and_wrong.png`.
    """

    priority = 'NORMAL'

    def __init__(self, out_dir: str):
        self.out_dir = Path(out_dir)
        self._judged: list[_Judged] = []

    def before_test(self, runner) -> None:
        """Start anew."""
        self._judged = []

    def after_test_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Draw a batch: every process draws those that it tests."""
        classes = runner.test_dataloader.dataset.metainfo.get('classes')
        for sample in outputs:
            source = Path(sample.img_path)
            draw(read_picture(source), sample, classes, self.out_dir / source.parent.name / f'{source.stem}.png')
            truth = sample.get('gt_label')
            if truth is not None and len(truth) == 1:
                (best,) = likeliest(sample.pred_score, 1)
                self._judged.append(_Judged(str(source), int(truth), *best))

    def after_test(self, runner) -> None:
        """Draw the overview of what all processes tested, if the true classes are known."""
        shares = all_gather_object(self._judged)
        judged = {entry.path: entry for share in shares for entry in share}  # a share may be padded with others' images
        if judged and is_main_process():
            classes = runner.test_dataloader.dataset.metainfo.get('classes')
            _overview(list(judged.values()), classes, self.out_dir / OVERVIEW)


def _overview(judged: list[_Judged], classes: Sequence[str] | None, path: Path) -> None:
    """Some of the right ones, evenly spread, above the wrong ones of which the network was surest."""
    from matplotlib.figure import Figure

    from mmvmamba.datasets.files import spread

    right = [one for one in judged if one.truth == one.label]
    wrong = sorted((one for one in judged if one.truth != one.label), key=lambda one: -one.probability)
    most = _COLUMNS * _ROWS
    parts = [
        (f'right: {len(right)} of {len(judged)}', [right[i] for i in spread(len(right), most)], _RIGHT),
        (f'wrong: {len(wrong)} of {len(judged)}', wrong[:most], _WRONG),
    ]
    rows = [-(-len(ones) // _COLUMNS) for _, ones, _ in parts]
    figure = Figure(figsize=(1.9 * _COLUMNS, 2.2 * sum(rows) + 0.4 * len(rows)), layout='constrained')
    panels = figure.subfigures(2, 1, height_ratios=[max(count, 0.25) for count in rows])
    for panel, (title, ones, colour), count in zip(panels, parts, rows, strict=True):
        panel.suptitle(title, color=colour)
        axes = np.atleast_1d(panel.subplots(count, _COLUMNS)).ravel() if count else []
        for axis in axes:
            axis.axis('off')
        for axis, one in zip(axes, ones, strict=False):
            axis.imshow(read_picture(one.path)[..., ::-1])
            said = f'{name_of(classes, one.label)} {one.probability:.2f}'
            said += '' if one.truth == one.label else f'\nis {name_of(classes, one.truth)}'
            axis.set_title(said, fontsize=9, color=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
