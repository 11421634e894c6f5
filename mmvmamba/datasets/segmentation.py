"""mmseg's datasets, checked."""

from mmseg.datasets import ADE20KDataset, BaseSegDataset

from mmvmamba.registry import DATASETS

from .checks import CheckedPipeline


@DATASETS.register_module()
class CheckedSegDataset(BaseSegDataset):
    """Images and label maps whose bad files are named; see `checks` for the rule.

    Takes mmseg's arguments. `test_mode` makes bad files errors.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        classes = self.metainfo.get('classes')
        labels = len(classes) if classes else None
        self.pipeline = CheckedPipeline(self.pipeline, self.test_mode, labels, self.ignore_index)


@DATASETS.register_module()
class CheckedADE20KDataset(CheckedSegDataset, ADE20KDataset):
    """`ADE20KDataset`, checked."""
