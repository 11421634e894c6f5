"""mmseg's datasets, checked."""

from mmseg.datasets import ADE20KDataset, BaseSegDataset

from mmvmamba.registry import DATASETS

from .checks import CheckedPipeline
from .label_maps import nothing_found
from .report import DataError


@DATASETS.register_module()
class CheckedSegDataset(BaseSegDataset):
    """Images and label maps whose bad files are named; see `checks` for the rule.

    Takes mmseg's arguments. `test_mode` makes bad files errors.

    Raises:
        DataError: there is no image.
    """

    LEAVES_OUT_BAD_DATA = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        classes = self.metainfo.get('classes')
        labels = len(classes) if classes else None
        self.pipeline = CheckedPipeline(self.pipeline, self.test_mode, labels, self.ignore_index)

    def filter_data(self) -> list[dict]:
        """What is used, and not nothing."""
        kept = super().filter_data()
        if not kept:
            raise DataError(nothing_found(self))
        return kept


@DATASETS.register_module()
class CheckedADE20KDataset(CheckedSegDataset, ADE20KDataset):
    """`ADE20KDataset`, checked."""
