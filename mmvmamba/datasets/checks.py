"""What becomes of bad data, by one rule: training leaves it out and says so, evaluation stops and says why.

    file missing, empty, truncated, or no image         bad sample
    label file missing, of another size, not (H, W)     bad sample
    segmentation label outside the classes              bad sample
    annotation without area, or box outside its image   left out of training, counted in one warning; the metric reads
                                                        the annotation file by itself and leaves nothing out
    entry that lacks a field (box, area, mask, size     left out of training, counted; evaluation stops at the start,
    of the image, ...) or names no image or category    but for entries of images that the file does not list
    image without annotations                           detection: left out of training, counted; evaluated like others
    grey or 16-bit image                                read as 8-bit colour
    orientation tag                                     obeyed, unless the size in the annotation says otherwise

In training a bad sample is replaced by another, drawn from the generator that is seeded by the position in training, so
a resumed run draws the same. If the first samples are all bad, or more than half are, the training stops: then the data
set or the config is wrong. So is the config if a loading transform fails although the files can be read. Any other
failure passes on unchanged, after the log has named the file.
"""

import logging

import mmcv
import torch
from mmengine.dataset import Compose
from mmengine.logging import print_log

from . import files, label_maps
from .report import DataError

_SHOWN = 20
_FIRST, _SEEN = 20, 100  # bad samples in a row at the start; samples before a share means something
_NOTHING = 500  # times in a row that transforms may ask for another sample


class BadSampleError(DataError):
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
        self.skipped, self.taken = (
            torch.zeros(1, dtype=torch.int64).share_memory_() for _ in range(2)
        )  # by all workers
        self._first, self._nothing = '', 0  # by this one

    def __call__(self, data: dict) -> dict | None:
        path = data.get('img_path')
        for transform in self.transforms:
            loading = type(transform).__name__.startswith('Load')
            given, finished = data, False
            try:
                data = transform(given)
                if loading:
                    self._check(data, path)
                finished = True
            except Exception as error:
                if not loading:
                    raise
                reason = _file_fault(error, given)
                if reason is None and not isinstance(error, (AssertionError, ValueError)):
                    raise
                finished = True
                if reason is None:
                    said = f'{type(error).__name__}: {" ".join(str(error).split())}'
                    raise DataError(
                        f'{path}: {said}. The files can be read, so the mistake is in the config'
                    ) from error
                return self._bad(f'{path}: {reason}', error)
            finally:
                if not finished:
                    print_log(f'{path}: {transform} failed', logger='current', level=logging.ERROR)
            if data is None:
                return self._none(f'{path}: {transform}')
        self.taken += 1
        self._nothing = 0
        return data

    def _none(self, by: str) -> None:
        self._nothing += 1
        if self._nothing >= _NOTHING:
            raise DataError(f'transforms refused {_NOTHING} samples in a row, the last by {" ".join(by.split())}')

    def _bad(self, reason: str, cause: Exception) -> None:
        if self.strict:
            raise BadSampleError(f'{reason}. Evaluation leaves nothing out; repair or remove the file') from cause
        self.skipped += 1
        bad, good = int(self.skipped), int(self.taken)
        self._first = self._first or reason
        if (bad >= _FIRST and not good) or (bad > good and bad + good >= _SEEN):
            share = f'the first {bad} samples are bad' if not good else f'{bad} of {bad + good} samples are bad'
            raise BadSampleError(
                f'{share}, so the data set or the config is wrong; the first: {self._first}'
            ) from cause
        if bad <= _SHOWN or bad % 1000 == 0:
            print_log(f'bad sample skipped ({bad} so far): {reason}', logger='current', level=logging.WARNING)

    def _check(self, data: dict | None, path: str) -> None:
        if data is None:
            raise BadSampleError('the file was not read')
        labels = data.get('gt_seg_map')
        if labels is not None:
            reason = label_maps.fault(labels, data['seg_map_path'], self.labels, self.ignored)
            if reason is not None:
                raise BadSampleError(reason)
            _fit_size(data, path, labels.shape[:2], 'its label file')
        elif 'img' in data:
            if files.is_cut(path):
                raise BadSampleError('the file is cut off')
            if 'height' in data and 'width' in data:
                _fit_size(data, path, (data['height'], data['width']), 'its annotation')


def _file_fault(error: Exception, data: dict) -> str | None:
    """What is wrong with the files of a sample that could not be loaded, None if nothing."""
    if isinstance(error, BadSampleError):
        return str(error)
    said = f'{type(error).__name__}: {" ".join(str(error).split())}'
    if isinstance(error, FileNotFoundError):
        return said
    for key, whose in (('img_path', ''), ('seg_map_path', 'its label file: ')):
        path = data.get(key)
        local = isinstance(path, str) and '://' not in path
        fault = files.image_fault(path) if local else None
        if fault is not None:
            return whose + fault
    return said if isinstance(error, OSError) else None  # of any backend


def _fit_size(data: dict, path: str, size: tuple[int, int], where: str) -> None:
    """Refuse an image of another size than annotated, unless only its orientation tag is to blame."""
    if data['img'].shape[:2] == tuple(size):
        return
    stored = mmcv.imread(path, flag='color_ignore_orientation')
    if stored.shape[:2] != tuple(size):
        raise BadSampleError(f'the image is {data["img"].shape[:2]} (H, W), but {where} says {tuple(size)}')
    data.update(img=stored.astype(data['img'].dtype), img_shape=stored.shape[:2], ori_shape=stored.shape[:2])
