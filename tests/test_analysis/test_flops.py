"""Counts equal the published tables, and what a fused operator hides is counted."""

import functools
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmvmamba.analysis import flops
from mmvmamba.engine import launch
from mmvmamba.models import FastMaskVim, FastVim, VMamba

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
ZOO = {row['Name']: row['Metadata'] for row in yaml.safe_load((CONFIGS / 'metafile.yml').read_text())['Models']}
# published: millions of parameters, billions of FLOPs
DETECTION = {
    'maskrcnn_vmamba_t': (50, 271),
    'maskrcnn_vmamba_t_s2l5': (50, 270),
    'maskrcnn_vmamba_s': (70, 349),
    'maskrcnn_vmamba_b': (108, 485),
    'maskrcnn_vmamba_v0_t': (42, 286),
    'maskrcnn_vmamba_v0_s': (64, 400),
    'maskrcnn_vmamba_v0_b': (96, 540),
}
SEGMENTATION = {
    'upernet_vmamba_t': (62, 949),
    'upernet_vmamba_t_s2l5': (62, 948),
    'upernet_vmamba_s': (82, 1028),
    'upernet_vmamba_b': (122, 1170),
    'upernet_vmamba_v0_t': (55, 964),
    'upernet_vmamba_v0_s': (76, 1081),
    'upernet_vmamba_v0_b': (110, 1226),
}


@pytest.fixture(autouse=True)
def _no_leaking_scope():
    yield
    DefaultScope._instance_dict.clear()


def count(name, height, width):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    launch.prepare(cfg, 'none', 'unused')
    return flops.of_config(cfg, height, width)


@functools.cache
def backbone_flops(arch) -> float:
    """A pixel's share of a backbone's FLOPs, all of which are proportional to the area where 32 divides both sides."""
    return flops.complexity(VMamba(arch), torch.rand(1, 3, 320, 320)).flops / 320**2


def backbone_and_laterals(name):
    """What the backbones of the detectors and the first layer behind them cost at 1280 x 800."""
    model = Config.fromfile(CONFIGS / f'{name}.py').model
    pixels = (1280 * 800 // stride**2 for stride in (4, 8, 16, 32))
    laterals = sum(n * channels * 256 for n, channels in zip(pixels, model.neck.in_channels, strict=True))
    return 1280 * 800 * backbone_flops(model.backbone.arch) + laterals


@pytest.fixture(scope='module')
def detector():
    """A whole detector, counted as users do; the others have the same heads."""
    counted = count('maskrcnn_vmamba_t', 1280, 800)
    return counted, counted.flops - backbone_and_laterals('maskrcnn_vmamba_t')


def test_the_counted_detector_is_the_published_one(detector):
    counted, _ = detector
    assert counted.flops == ZOO['maskrcnn_vmamba_t']['FLOPs']
    assert counted.parameters == ZOO['maskrcnn_vmamba_t']['Parameters']


@pytest.mark.parametrize('name', DETECTION)
def test_detection_equals_the_published_table(name, detector):
    """Parameters of the metafile are compared with the models in test_zoo.py."""
    millions, billions = DETECTION[name]
    total = backbone_and_laterals(name) + detector[1]
    row = ZOO[name]
    assert total == row['FLOPs']
    assert round(row['Parameters'] / 1e6) == millions == row['Published Parameters (M)']
    assert billions == row['Published FLOPs (G)']
    assert total / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.fixture(scope='module')
def heads():
    """FLOPs a pixel of what stands behind a backbone, by its channels: of two whole segmentors.

    On a sixteenth of the area, to take seconds; all but the pooled pyramid (0.1 per mille) grows with the area.
    """
    found = {}
    for name in ('upernet_vmamba_t', 'upernet_vmamba_b'):
        model = Config.fromfile(CONFIGS / f'{name}.py').model
        behind = count(name, 128, 512).flops / (128 * 512) - backbone_flops(model.backbone.arch)
        found[tuple(model.decode_head.in_channels)] = behind
    return found


@pytest.mark.parametrize('name', SEGMENTATION)
def test_segmentation_equals_the_published_table(name, heads):
    """At 512 x 2048. Parameters of the metafile are compared with the models in test_zoo.py."""
    millions, billions = SEGMENTATION[name]
    model = Config.fromfile(CONFIGS / f'{name}.py').model
    total = 512 * 2048 * (backbone_flops(model.backbone.arch) + heads[tuple(model.decode_head.in_channels)])
    row = ZOO[name]
    assert round(row['Parameters'] / 1e6) == millions == row['Published Parameters (M)']
    assert total / 1e9 == pytest.approx(billions, rel=0.01)
    assert total == pytest.approx(row['FLOPs'], rel=1e-3)
    assert billions == row['Published FLOPs (G)']


def test_every_backend_gives_the_same_count():
    counts = set()
    for backend in ('reference', 'torch', 'auto'):
        model = VMamba(depths=(1, 1), embed_dims=16, out_indices=(1,), backend=backend)
        counts.add(flops.complexity(model, torch.rand(1, 3, 32, 48)).flops)
        assert model.layers[0].blocks[0].op.backend == backend, 'the model is left as it was'
    assert len(counts) == 1


def test_pooled_scan_counts_the_pooled_length():
    def scans(pool, height, width):
        model = FastVim(embed_dims=32, depth=1, out_indices=(0,), img_size=64, pool=pool)
        return flops.complexity(model, torch.rand(1, 3, height, width)).by_operator['pooled_scan']

    channels, states, rank = 64, 16, 2
    per_token = 2 * channels * (4 + 1) + 5 * channels
    per_position = 2 * channels * (2 * states + 2 * rank + 9 * states)
    assert scans('mean', 64, 96) == 24 * per_token + 4 * per_position
    assert scans(None, 64, 96) == 24 * per_token + 24 * per_position


def test_masked_scan_counts_kept_tokens_and_whole_lines():
    model = FastMaskVim(embed_dims=32, depth=2, img_size=(64, 96), mask_ratio=0.75)
    counted = flops.complexity(model, torch.rand(1, 3, 64, 96)).by_operator['pooled_scan_kept']
    channels, states, rank = 64, 16, 2
    per_token = 2 * channels * (4 + 1) + 5 * channels
    per_position = 2 * channels * (2 * states + 2 * rank + 9 * states)
    assert counted == 2 * 6 * per_token + (4 + 6) * per_position  # a block along rows, one along columns


def test_pretraining_is_counted_masked_and_with_its_decoder():
    cfg = Config.fromfile(CONFIGS / 'mae/demo.py')
    cfg.model.backbone.depth = 1
    counted = flops.of_config(cfg, 64, 64)
    assert set(counted.by_operator) >= {'pooled_scan_kept', 'pooled_scan'}
    linear = 16 * 64 * 64 + 64 * 64 * 192  # embedding of the kept into the decoder, its prediction of all
    assert counted.flops > linear


def test_operators_without_a_rule_are_listed():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.cumsum(x.exp(), dim=3)

    counted = flops.complexity(Odd(), torch.rand(1, 3, 4, 4))
    assert counted.flops == 0
    assert counted.not_counted == {'aten::cumsum': 1, 'aten::exp': 1}
