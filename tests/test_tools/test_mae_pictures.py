"""Pictures of masked autoencoders: image, what is seen of it, what is made of it."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from tool_runs import ROOT, load_tool

CONFIG = ROOT / 'configs/mae/demo.py'


@pytest.fixture
def files(tmp_path):
    """A checkpoint of untrained weights and an image."""
    cfg = Config.fromfile(CONFIG)
    init_default_scope(cfg.default_scope)
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, tmp_path / 'weights.pth')
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), cv2.resize(coarse, (64, 64)))
    yield tmp_path
    DefaultScope._instance_dict.clear()


def test_kept_patches_are_shown_and_pasted_into_the_reconstruction(files, capsys):
    arguments = [str(CONFIG), str(files / 'weights.pth'), str(files / 'image.png'), '--out', str(files / 'out.png')]
    assert load_tool('analysis/mae_pictures').main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(files / 'out.png')
    drawn = cv2.imread(str(files / 'out.png')).astype(int)
    assert drawn.shape == (192, 576, 3), 'small images are enlarged'
    image, seen, made = np.split(drawn[::3, ::3], 3, axis=1)
    assert np.abs(image - cv2.imread(str(files / 'image.png')).astype(int)).max() <= 1
    same = [np.abs(image - other).reshape(8, 8, 8, 8, 3).max((1, 3, 4)) <= 1 for other in (seen, made)]
    assert same[0].sum() == 16, 'a quarter of 64 patches'
    assert (same[1] >= same[0]).all()


def test_a_missing_image_is_an_error_in_words(files, capsys):
    arguments = [str(CONFIG), str(files / 'weights.pth'), str(files / 'none.png'), '--out', str(files / 'out.png')]
    assert load_tool('analysis/mae_pictures').main(arguments) == 1
    assert 'none.png: no image that OpenCV can read' in capsys.readouterr().err
