"""The checked datasets of label maps built by themselves."""

import numpy as np
import pytest
from mmengine.registry import DefaultScope
from PIL import Image

from mmvmamba.datasets.checks import BadSampleError
from mmvmamba.datasets.report import DataError

mmseg = pytest.importorskip('mmseg')


@pytest.fixture
def root(tmp_path):
    """Two pictures with their label maps."""
    for i in range(2):
        Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(tmp_path / f'{i}.jpg')
        Image.fromarray(np.full((8, 10), i, np.uint8)).save(tmp_path / f'{i}.png')
    return tmp_path


def build(root, **options):
    from mmvmamba.datasets.segmentation import CheckedSegDataset

    with DefaultScope.overwrite_default_scope('mmseg'):
        return CheckedSegDataset(
            data_root=str(root),
            data_prefix=dict(img_path='', seg_map_path=''),
            metainfo=dict(classes=('no', 'yes')),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
            **options,
        )


def test_an_empty_data_set_says_what_lies_there(root):
    with pytest.raises(DataError, match=r"looked in .* for names that end with '\.jpeg'; the folder has \.\w+ \(2\), "):
        build(root, img_suffix='.jpeg')
    (root / 'names.txt').write_text('')
    with pytest.raises(DataError, match=r'names\.txt lists no name'):
        build(root, ann_file='names.txt')


def test_a_colour_mask_is_refused_with_its_shape(root):
    Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(root / '1.png')
    with pytest.raises(BadSampleError, match=r'1\.jpg: the label map has shape \(8, 10, 3\); expected \(H, W\)'):
        build(root, test_mode=True)[1]
    dataset = build(root)
    assert dataset[0]['data_samples'].gt_sem_seg.data.max() == 0
    assert dataset.pipeline(dataset.get_data_info(1)) is None


def test_labels_that_eight_bits_cannot_hold(root):
    Image.fromarray(np.full((8, 10), 256, np.uint16)).save(root / '0.png')
    with pytest.raises(BadSampleError, match='labels 256 to 256; the toolbox keeps 8 bits'):
        build(root, test_mode=True)[0]
