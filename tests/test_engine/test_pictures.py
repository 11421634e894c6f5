"""Pictures of images that OpenCV does not show by itself."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from mmvmamba.datasets.report import DataError
from mmvmamba.engine import pictures
from mmvmamba.engine.pictures import false_colours, read_picture


def test_many_channels_are_shown_in_false_colours(tmp_path):
    planes = np.zeros((8, 40, 60), np.uint8)
    for channel in range(8):
        planes[channel, :, 7 * channel : 7 * channel + 4] = 50 + channel
    np.save(tmp_path / 'a.npy', planes)
    assert cv2.imwritemulti(str(tmp_path / 'a.tif'), list(planes))
    shown = read_picture(tmp_path / 'a.npy')
    assert (shown.shape, shown.dtype) == ((40, 60, 3), np.uint8)
    assert np.array_equal(read_picture(tmp_path / 'a.tif'), shown)
    colours = [tuple(shown[20, 7 * channel + 1].tolist()) for channel in range(8)]
    assert len(set(colours)) == 8
    assert all(max(colour) == 255 for colour in colours), 'every channel reaches its full colour'
    assert not shown[:, 58:].any()


def test_constant_channels_are_black():
    assert not false_colours(np.full((4, 4, 3), 7.0)).any()


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / 'a.npy').write_bytes(b'no array')
    with pytest.raises(DataError, match=r'a\.npy'):
        read_picture(tmp_path / 'a.npy')


def test_every_process_hands_in_its_share(tmp_path, monkeypatch):
    """One of which is padded with an image of the other's."""
    hook = pictures.ClassificationPictures(str(tmp_path))
    mine, another = (pictures._Judged(f'{name}.png', 0, 0, 0.9) for name in 'ab')
    hook._judged = [mine]
    monkeypatch.setattr(pictures, 'all_gather_object', lambda share: [share, [another, mine]])
    drawn = []
    monkeypatch.setattr(pictures, '_overview', lambda judged, *others: drawn.append(judged))
    dataset = SimpleNamespace(metainfo={})
    hook.after_test(SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset)))
    assert drawn == [[mine, another]]
