"""The published protocol for other test sizes: its pipeline, and the linear layer that learns what can be learnt."""

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from PIL import Image

from mmvmamba.analysis import resolution

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='CenterCrop', crop_size=9), dict(type='PackInputs')]


@pytest.mark.parametrize('size', [(50, 90), (90, 50), (41, 41)], ids=str)
@pytest.mark.parametrize('side', [32, 47])
def test_images_are_those_of_the_published_protocol(size, side, tmp_path):
    """Pillow's resizing of the short side and the centre, bit for bit."""
    pytest.importorskip('mmpretrain')
    from mmpretrain.registry import TRANSFORMS

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))
    image.save(tmp_path / 'image.png')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        transforms = Compose([TRANSFORMS.build(one) for one in resolution.pipeline_of(PIPELINE, side)])
        found = transforms(dict(img_path=str(tmp_path / 'image.png')))['inputs'].permute(1, 2, 0).numpy()[..., ::-1]
    short = int(256 / 224 * side)
    width, height = image.size
    shape = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    resized = image.resize(shape, Image.Resampling.BICUBIC)
    left, top = (round((a - side) / 2.0) for a in resized.size)
    assert np.array_equal(found, np.asarray(resized.crop((left, top, left + side, top + side))))


def test_another_pipeline_is_refused():
    with pytest.raises(ValueError, match=r'expected LoadImageFromFile \.\.\. PackInputs'):
        resolution.pipeline_of(PIPELINE[1:], 32)


def test_the_linear_layer_learns_and_is_seeded():
    labels = torch.arange(60) % 3
    features = torch.eye(3)[labels] * 4 + 0.1 * torch.randn(60, 3)
    layers = [resolution.linear_probe(features, labels, 3, 0.05, epochs=20, batch=20) for _ in range(2)]
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert resolution.top1(layers[0](features), labels) == 100


def test_published_learning_rates():
    rates = [resolution.learning_rate(side) for side in resolution.SIDES]
    assert rates == [0.05, 0.05, 0.05, 0.2, 0.5, 0.5]
