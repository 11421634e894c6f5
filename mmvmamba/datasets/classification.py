"""mmpretrain's datasets of folders and lists, checked."""

from mmpretrain.datasets import CustomDataset, ImageNet

from mmvmamba.registry import DATASETS

from . import class_folders
from .checks import CheckedPipeline
from .report import DataError


@DATASETS.register_module()
class CheckedCustomDataset(CustomDataset):
    """A folder a class, or a list of files, whose bad files are named; see `checks` for the rule.

    Takes mmpretrain's arguments. `test_mode` makes bad files errors.

    Raises:
        DataError: there is no image, or the folders are not the classes of `metainfo`.
    """

    LEAVES_OUT_BAD_DATA = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pipeline = CheckedPipeline(self.pipeline, strict=self.test_mode)

    def load_data_list(self) -> list[dict]:
        """All images with their labels."""
        errors = [text for level, text in class_folders.findings(self) if level == 'error']
        if errors:
            raise DataError(f'{self.img_prefix}: {"; ".join(errors)}')
        return super().load_data_list()


@DATASETS.register_module()
class CheckedImageNet(CheckedCustomDataset, ImageNet):
    """`ImageNet`, checked."""
