"""mmdet's COCO dataset, checked."""

import logging

from mmdet.datasets import CocoDataset
from mmengine.logging import print_log

from mmvmamba.registry import DATASETS

from .checks import CheckedPipeline


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """COCO annotations whose bad entries are counted and whose bad files are named; see `checks` for the rule.

    Takes mmdet's arguments. `test_mode` makes bad files errors.
    """

    def __init__(self, *args, **kwargs):
        self._dropped: list[str] = []
        super().__init__(*args, **kwargs)
        self.pipeline = CheckedPipeline(self.pipeline, strict=self.test_mode)

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """One image with its usable annotations."""
        info = super().parse_data_info(raw_data_info)
        usable = [
            annotation
            for annotation in raw_data_info['raw_ann_info']
            if not annotation.get('ignore', False) and annotation['category_id'] in self.cat_ids
        ]
        self._dropped += [info['img_path']] * (len(usable) - len(info['instances']))
        return info

    def filter_data(self) -> list[dict]:
        """What is trained on; says what is not."""
        kept = super().filter_data()
        if self._dropped:
            print_log(
                f'{self.ann_file}: left out {len(self._dropped)} annotations without area or outside their image, the '
                f'first in {self._dropped[0]}',
                logger='current',
                level=logging.WARNING,
            )
        if len(kept) < len(self.data_list):
            print_log(
                f'{self.ann_file}: left out {len(self.data_list) - len(kept)} of {len(self.data_list)} images, which '
                f'have no annotation or are smaller than filter_cfg allows',
                logger='current',
                level=logging.WARNING,
            )
        return kept
