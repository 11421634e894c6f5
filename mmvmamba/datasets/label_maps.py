"""Label maps of semantic segmentation: shapes, labels outside the classes, classes that never occur, what is ignored.

Maps are loaded by the pipeline's own transform, so that what is judged is what is trained on.
"""

import os
from dataclasses import dataclass, field

import cv2
import mmcv
import numpy as np
from PIL import Image

from . import files
from .report import shorten

_MOST = 0.95  # a larger share of ignored pixels is a mistake more often than not
_LOADER_BITS = 8
_DEEP = ('I', 'F')  # how Pillow's modes of more than eight bits begin


@dataclass
class Looked:
    """What a sample of label maps holds.

    Attributes:
        maps: number of maps that could be used.
        pixels: `(256,)` pixels of each label, as trained on.
        bad: `(path, reason)` of the others.
        mistake: what the transform says of the config; nothing more was looked at.
        hindrance: why the transform cannot be run by itself; nothing more was looked at.
    """

    maps: int = 0
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    bad: list[tuple[str, str]] = field(default_factory=list)
    mistake: str | None = None
    hindrance: str | None = None


def look(infos: list[dict], loader, classes: list[str] | None, ignored: int, images: bool) -> Looked:
    """Load label maps.

    Args:
        infos: entries of the dataset's list.
        loader: the transform that loads a label map.
        classes: their names, None if unknown.
        ignored: label of pixels that do not count.
        images: whether the images are files whose size should be that of the maps.
    """
    looked = Looked()
    for info in infos:
        path = info['seg_map_path']
        try:
            labels = loader(dict(info, seg_fields=[]))['gt_seg_map']
            reason = fault(labels, path, len(classes) if classes else None, ignored)
        except Exception as error:
            reason = files.image_fault(path)
            if reason is None:  # the file is sound, so it is the config, or the transform needs more than a path
                said = f'{type(error).__name__}: {error}'
                if isinstance(error, (AssertionError, ValueError)):
                    looked.mistake = said
                else:
                    looked.hindrance = said
                return looked
        if reason is None and images:
            reason = _size_fault(info['img_path'], labels.shape)
        if reason is not None:
            looked.bad.append((path, reason))
            continue
        looked.maps += 1
        looked.pixels += _histogram(labels)
    return looked


def _histogram(labels: np.ndarray) -> np.ndarray:
    """`(256,)` pixels of each label."""
    if labels.dtype == np.uint8:  # several times faster than NumPy's
        return cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return np.bincount(labels.ravel(), minlength=256)[:256]


def fault(labels: np.ndarray, path: str, count: int | None, ignored: int) -> str | None:
    """Why a label map cannot be used, None if it can.

    Args:
        labels: as loaded.
        path: of its file.
        count: number of classes, None if unknown.
        ignored: label of pixels that do not count.
    """
    if labels.ndim != 2:
        colours = ' (a colour mask: write the number of the class into one channel)' if labels.ndim == 3 else ''
        return f'the label map has shape {labels.shape}; expected (H, W), one label a pixel{colours}'
    deep = _deep_fault(path)
    if deep is not None or count is None:
        return deep
    outside = (labels >= count) & (labels != ignored)
    if not outside.any():
        return None
    return (
        f'its label file has labels {shorten(np.unique(labels[outside]).tolist(), 20)}; expected 0 to {count - 1}, or '
        f'{ignored} to ignore (after reduce_zero_label, if that is set)'
    )


def _deep_fault(path: str) -> str | None:
    """Whether a local file holds labels that the toolboxes' eight bits cannot."""
    if '://' in str(path):
        return None
    try:
        with Image.open(path) as image:
            if not image.mode.startswith(_DEEP):
                return None
    except OSError:  # a kind that a loader of its own reads
        return None
    labels = mmcv.imread(path, flag='unchanged', backend='pillow')
    if labels.min() >= 0 and labels.max() < 2**_LOADER_BITS:
        return None
    return f'its label file has labels {labels.min()} to {labels.max()}; the toolbox keeps {_LOADER_BITS} bits of them'


def _size_fault(path: str, size: tuple[int, int]) -> str | None:
    reason = files.image_fault(path, decode=False)
    if reason is not None:
        return None  # named as an image
    sizes = files.image_sizes(path)
    return None if size in sizes else f'its image is {sizes[0]} (H, W), but the label map is {size}'


def nothing_found(dataset) -> str:
    """Why a dataset's list is empty.

    Args:
        dataset: one that lists images by folder and suffix, or by names in a text file.
    """
    folder = dataset.data_prefix.get('img_path') or ''
    if dataset.ann_file and not os.path.isdir(dataset.ann_file):
        return f'no image: {dataset.ann_file} lists no name'
    return f'no image: looked in {folder} for names that end with {dataset.img_suffix!r}; {files.suffixes(folder)}'


_MAPS_A_CLASS = 10  # of a sample; with fewer, a rare class (there are many in ADE20K) may well be in none


def doubts(looked: Looked, classes: list[str], total: int, ignored: int) -> list[tuple[str, str]]:
    """What is legal but most often a mistake: 'warning' or, where a sample cannot tell, 'note', and words.

    Args:
        looked: a sample.
        classes: their names.
        total: number of maps in all.
        ignored: label of pixels that do not count.
    """
    if not looked.maps:
        return []
    pixels = looked.pixels[ignored] if 0 <= ignored < len(looked.pixels) else 0
    said, where = [], f'the {looked.maps} label files looked at (of {total})'
    absent = [name for name, count in zip(classes, looked.pixels, strict=False) if not count]
    if absent:
        small = looked.maps < min(total, _MAPS_A_CLASS * len(classes)) and 2 * len(absent) < len(classes)
        text = f'{len(absent)} of {len(classes)} classes occur in none of {where}: {shorten(map(repr, absent), 10)}'
        said.append(('note' if small else 'warning', text))
    elif len(classes) == 1 and pixels:
        text = f'what is not ignored in {where} is all {classes[0]!r}, so there is nothing to learn'
        said.append(('warning', text))
    share = pixels / max(looked.pixels.sum(), 1)
    if share > _MOST:
        said.append(('warning', f'{100 * share:.1f} % of the pixels of {where} are ignored'))
    return said


def convention(paths: list[str], looked: Looked, reduces: bool, count: int, ignored: int) -> tuple[str, str]:
    """What label files hold as they are written, and what that advises ('' if nothing).

    Args:
        paths: some of them, which are read once more.
        looked: a larger sample, as trained on.
        reduces: reduce_zero_label.
        count: number of classes.
        ignored: label of pixels that do not count.
    """
    values: set[int] = set()
    for path in paths:
        if files.image_fault(path) is None:
            labels = mmcv.imread(path, flag='unchanged', backend='pillow')
            values |= set(np.unique(labels.astype(np.int64)).tolist()) if labels.ndim == 2 else set()
    said = f'As written, {len(paths)} of them hold {shorten(sorted(values), 20)}, with reduce_zero_label={reduces}'
    trained = np.flatnonzero(looked.pixels)
    most = max([*(values - {255}), *(trained[trained != ignored] + reduces).tolist()], default=0)
    if values and values <= {0, 255}:
        advice = '255 means ignored, so write 1 for 255' + (' and set reduce_zero_label=False' if reduces else '')
    elif values and reduces and most < count:
        advice = 'it ignores 0 and makes 1 the first class; if 0 is the first, set it to False, in LoadAnnotations too'
    elif values and not reduces and most == count:
        advice = f'{count} classes numbered from 1 need it set to True, in LoadAnnotations too; 0 is then ignored'
    else:
        advice = ''
    return said, advice
