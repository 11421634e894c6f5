"""mmdet's COCO dataset, checked."""

import logging
from functools import partial

from mmcv.transforms import LoadAnnotations
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmengine.logging import print_log

from mmvmamba.registry import DATASETS

from . import annotations, names
from .checks import CheckedPipeline
from .report import DataError


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """COCO annotations whose bad entries are counted and whose bad files are named; see `checks` for the rule.

    Takes mmdet's arguments. `test_mode` makes bad files and entries errors. Labels follow the names of `metainfo`.

    Raises:
        DataError: the file is none of COCO's, its categories do not fit the names, or nothing is left to train on.
    """

    LEAVES_OUT_BAD_DATA = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pipeline = CheckedPipeline(self.pipeline, strict=self.test_mode)

    def load_data_list(self) -> list[dict]:
        """All images with their usable annotations."""
        self.COCOAPI = partial(_open, self)
        try:
            return super().load_data_list()
        finally:
            del self.COCOAPI

    def filter_data(self) -> list[dict]:
        """What is trained on; says what is not."""
        kept = super().filter_data()
        total = len(self.data_list)
        if not kept:
            smallest = (self.filter_cfg or {}).get('min_size', 0)
            small = sum(min(info['width'], info['height']) < smallest for info in self.data_list)
            raise DataError(
                f'{self.ann_file}: {annotations.nothing_left(total, small, total - small, self.filter_cfg)}'
            )
        if len(kept) < total:
            print_log(
                f'{self.ann_file}: left out {total - len(kept)} of {total} images, which have no annotation or are '
                f'smaller than filter_cfg allows',
                logger='current',
                level=logging.WARNING,
            )
        return kept


def _open(dataset: CheckedCocoDataset, path: str) -> COCO:
    """The annotation file, with what `dataset` can use of it."""
    transforms = dataset.pipeline.transforms
    masks = any(getattr(transform, 'with_mask', False) for transform in transforms)
    annotated = not dataset.test_mode and any(isinstance(transform, LoadAnnotations) for transform in transforms)
    classes = dataset.metainfo.get('classes')
    fault = names.classes_fault(classes)
    trained = list(classes) if fault is None else None
    examined = annotations.take(path, masks, annotated, trained)
    said = list(examined.findings(dataset.test_mode, checked=True))
    if fault is not None:
        said.append(('error', fault))
    elif not examined.faults:
        said += names.against_file(classes, [category['name'] for category in examined.content['categories']])
    errors = [text for level, text in said if level == 'error']
    if errors:
        raise DataError(f'{dataset.ann_file}: {"; ".join(errors)}')
    for level, text in said if not examined.reported else ():
        if level == 'warning':
            print_log(f'{dataset.ann_file}: {text}', logger='current', level=logging.WARNING)
    coco = COCO()
    coco.dataset = examined.usable()
    coco.createIndex()
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs
    return coco
