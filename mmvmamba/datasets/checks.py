"""What becomes of bad data, by one rule: training skips a sample and says so, evaluation stops and says why.

    file missing, empty, truncated, or no image         bad sample
    label file missing or of another size               bad sample
    segmentation label outside the classes              bad sample
    annotation without area, or box outside its image   left out of training, counted in one warning; the metric reads
                                                        the annotation file by itself and leaves nothing out
    image without annotations                           detection: left out of training, counted; evaluated like others
    grey or 16-bit image                                read as 8-bit colour
    orientation tag                                     obeyed, unless the size in the annotation says otherwise

In training a bad sample is replaced by another, drawn from the generator that is seeded by the position in training, so
a resumed run draws the same. Any other failure passes on unchanged, after the log has named the file.
"""

import logging

import cv2
import mmcv
import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.logging import print_log

from .images import is_cut

_SHOWN = 20
_UNREADABLE = (OSError, ValueError, AssertionError, SyntaxError, cv2.error)  # SyntaxError: Pillow's for a broken PNG


class BadSampleError(ValueError):
    """A sample that cannot be used, by name."""


class CheckedPipeline:
    """A pipeline of transforms that checks what was loaded.

    Args:
        pipeline: the transforms.
        strict: raise `BadSampleError` (evaluation) instead of returning None, at which a dataset draws another sample.
        labels: number of classes of a segmentation map; None for no such map.
        ignored: label of pixels that do not count.
    """

    def __init__(self, pipeline: Compose, strict: bool, labels: int | None = None, ignored: int = 255):
        self.transforms = pipeline.transforms
        self.strict, self.labels, self.ignored = strict, labels, ignored
        self.skipped = torch.zeros(1, dtype=torch.int64).share_memory_()  # by all workers together

    def __call__(self, data: dict) -> dict | None:
        path = data.get('img_path')
        for transform in self.transforms:
            loading = type(transform).__name__.startswith('Load')
            finished = False
            try:
                data = transform(data)
                if loading and data is not None:
                    self._check(data, path)
                finished = True
            except _UNREADABLE as error:
                if not loading:
                    raise
                finished = True
                return self._bad(f'{path}: {type(error).__name__}: {" ".join(str(error).split())}', error)
            finally:
                if not finished:
                    print_log(f'{path}: {transform} failed', logger='current', level=logging.ERROR)
            if data is None:
                return None
        return data

    def _bad(self, reason: str, cause: Exception) -> None:
        if self.strict:
            raise BadSampleError(f'{reason}. Evaluation leaves nothing out; repair or remove the file') from cause
        self.skipped += 1
        count = int(self.skipped)
        if count <= _SHOWN or count % 1000 == 0:
            print_log(f'bad sample skipped ({count} so far): {reason}', logger='current', level=logging.WARNING)

    def _check(self, data, path) -> None:
        labels = data.get('gt_seg_map')
        if labels is not None:
            _fit_size(data, path, labels.shape[:2], 'its label file')
            if self.labels is not None:
                _refuse_labels(labels, self.labels, self.ignored)
        elif 'img' in data:
            if is_cut(path):
                raise ValueError('the file is cut off')
            if 'height' in data and 'width' in data:
                _fit_size(data, path, (data['height'], data['width']), 'its annotation')


def _fit_size(data: dict, path: str, size: tuple[int, int], where: str) -> None:
    """Refuse an image of another size than annotated, unless only its orientation tag is to blame."""
    if data['img'].shape[:2] == tuple(size):
        return
    stored = mmcv.imread(path, flag='color_ignore_orientation')
    if stored.shape[:2] != tuple(size):
        raise ValueError(f'the image is {data["img"].shape[:2]} (H, W), but {where} says {tuple(size)}')
    data.update(img=stored.astype(data['img'].dtype), img_shape=stored.shape[:2], ori_shape=stored.shape[:2])


def _refuse_labels(labels: np.ndarray, count: int, ignored: int) -> None:
    outside = (labels >= count) & (labels != ignored)
    if outside.any():
        raise ValueError(
            f'its label file has labels {np.unique(labels[outside])[:_SHOWN].tolist()}; expected 0 to {count - 1}, or '
            f'{ignored} to ignore (after reduce_zero_label, if that is set)'
        )
