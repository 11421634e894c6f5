"""Transforms of images with many channels."""

import cv2
import numpy as np
import pytest

from mmvmamba.datasets.planes import (
    LoadPlanes,
    PadAndRandomCrop,
    RandomDefocus,
    RandomFlipOrRotate,
    RandomHoles,
    _disc,
    _rotated,
    read_planes,
)
from mmvmamba.datasets.report import DataError
from mmvmamba.registry import TRANSFORMS

CHANNELS = 7  # more than OpenCV's geometry takes at once


@pytest.fixture
def image():
    return np.random.default_rng(0).uniform(0, 255, (30, 40, CHANNELS)).astype(np.float32)


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


def test_loading(tmp_path, image):
    np.save(tmp_path / 'a.npy', image.transpose(2, 0, 1))
    np.save(tmp_path / 'b.npy', image)
    cv2.imwritemulti(str(tmp_path / 'c.tif'), list(image.transpose(2, 0, 1).astype(np.uint16)))
    found = LoadPlanes(CHANNELS)(dict(img_path=str(tmp_path / 'a.npy'), gt_label=3))
    assert (found['img'].dtype, found['img_shape'], found['gt_label']) == (np.float32, (30, 40), 3)
    assert np.array_equal(found['img'], image)
    assert np.array_equal(read_planes(tmp_path / 'b.npy', 'HWC'), image)
    assert np.array_equal(read_planes(tmp_path / 'c.tif'), image.astype(np.uint16))


def test_files_that_cannot_be_read_are_named(tmp_path, image):
    np.save(tmp_path / 'flat.npy', image[..., 0])
    np.save(tmp_path / 'objects.npy', np.array([None]), allow_pickle=True)
    (tmp_path / 'broken.tif').write_bytes(b'none')
    for name in ('flat.npy', 'objects.npy', 'broken.tif', 'missing.npy', 'photo.jpg'):
        with pytest.raises(DataError, match=name):
            read_planes(tmp_path / name)
    np.save(tmp_path / 'a.npy', image)
    with pytest.raises(DataError, match=r"a\.npy: 30 channels; expected 7 \(layout='CHW'\)"):
        LoadPlanes(CHANNELS)(dict(img_path=str(tmp_path / 'a.npy')))
    with pytest.raises(ValueError, match="layout='WHC' is unknown"):
        LoadPlanes(layout='WHC')


def test_pad_and_crop(image):
    tops = set()
    for _ in range(20):
        found = PadAndRandomCrop(48, 32)(dict(img=image))['img']
        assert found.shape == (32, 32, CHANNELS)
        rows = np.flatnonzero(found.any((1, 2)))
        tops.add(int(rows[0]))
        assert np.isin(found, np.append(image, 0)).all()
    assert len(tops) > 3
    exact = PadAndRandomCrop(20, 20)(dict(img=image))['img']
    assert any(np.array_equal(exact, image[t : t + 20, x : x + 20]) for t in range(11) for x in range(21))
    with pytest.raises(ValueError, match='crop=300'):
        PadAndRandomCrop(crop=300)


def test_rotation_treats_all_channels_alike(image):
    same = np.repeat(image[..., :1], CHANNELS, axis=2)
    turned = _rotated(same, 33.0)
    assert all(np.array_equal(turned[..., 0], turned[..., c]) for c in range(CHANNELS))
    np.testing.assert_allclose(_rotated(image[:, :30], 90.0), np.rot90(image[:, :30]), atol=1e-2)


def test_flips_and_rotations_are_drawn(image):
    found = [RandomFlipOrRotate()(dict(img=image))['img'] for _ in range(60)]
    untouched = sum(np.array_equal(f, image) for f in found)
    assert 18 < untouched < 42
    assert any(np.array_equal(f, image[:, ::-1]) for f in found)
    assert any(np.array_equal(f, image[::-1]) for f in found)
    assert {f.shape for f in found} == {image.shape}


def test_defocus_keeps_the_sum_of_a_spot():
    spot = np.zeros((41, 41, CHANNELS), np.float32)
    spot[20, 20] = 1
    blurred = RandomDefocus(prob=1)(dict(img=spot))['img']
    np.testing.assert_allclose(blurred.sum((0, 1)), 1, rtol=1e-5)
    assert np.array_equal(blurred[..., 0], blurred[..., 6])
    assert blurred.max() < 0.5
    for radius in (1, 3, 9):
        kernel = _disc(radius, 0.1)
        assert kernel.sum() == pytest.approx(1)
        assert (kernel > 1e-3).sum() == (np.hypot(*np.mgrid[-9:10, -9:10]) <= radius).sum()


def test_holes(image):
    found = RandomHoles(count=3, side=5, prob=1)(dict(img=image + 1))['img']
    gone = (found == 0).all(2)
    assert 25 <= gone.sum() <= 75
    assert (found[~gone] == (image + 1)[~gone]).all()
    assert (image > 0).all(), 'the given image was changed'
    assert RandomHoles(prob=0)(dict(img=image))['img'] is image


def test_the_seed_decides(image):
    pipeline = [
        TRANSFORMS.build(dict(type=f'mmvmamba.{name}'))
        for name in ('RandomFlipOrRotate', 'RandomDefocus', 'RandomHoles')
    ]
    runs = []
    for _ in range(2):
        np.random.seed(4)
        results = dict(img=image)
        for transform in pipeline:
            results = transform(results)
        runs.append(results['img'])
    assert np.array_equal(*runs)
