"""Counts equal the published tables, and what a fused operator hides is counted."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmvmamba.analysis import flops
from mmvmamba.engine import launch
from mmvmamba.models import FastVim, VMamba

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
# published: millions of parameters, billions of FLOPs
DETECTION = {'maskrcnn_vmamba_t': (50, 271), 'maskrcnn_vmamba_v0_t': (42, 286)}
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


@pytest.mark.parametrize('name', DETECTION)
def test_detection_equals_the_published_table(name):
    millions, billions = DETECTION[name]
    counted = count(name, 1280, 800)
    assert round(counted.parameters / 1e6) == millions
    assert counted.flops / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize('name', SEGMENTATION)
def test_segmentation_equals_the_published_table(name):
    """On a sixteenth of the area, to take seconds; all but the pooled pyramid (0.1 per mille) grows with the area."""
    millions, billions = SEGMENTATION[name]
    counted = count(name, 128, 512)
    assert round(counted.parameters / 1e6) == millions
    assert 16 * counted.flops / 1e9 == pytest.approx(billions, rel=0.01)


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


def test_operators_without_a_rule_are_listed():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.cumsum(x.exp(), dim=3)

    counted = flops.complexity(Odd(), torch.rand(1, 3, 4, 4))
    assert counted.flops == 0
    assert counted.not_counted == {'aten::cumsum': 1, 'aten::exp': 1}
