"""Parameters and FLOPs of classifiers equal the published tables."""

import functools

import golden_runs
import pytest
import torch
from tool_runs import ROOT, load_tool

from mmvmamba.analysis import flops
from mmvmamba.models.backbones.fastvim import ARCHS as FASTVIMS
from mmvmamba.models.backbones.vmamba import ARCHS

pytest.importorskip('mmpretrain')

_CLASSES = 1000
# published: parameters, FLOPs at 224 x 224
PUBLISHED = {
    'tiny_s1l8': (30_249_064, 4.905609984e9),
    'small_s1l20': (49_012_840, 8.612211456e9),
    'base_s1l20': (86_614_504, 15.220859904e9),
    'tiny_s2l5': (30_705_832, 4.857742080e9),
    'small_s2l15': (50_147_752, 8.715774720e9),
    'base_s2l15': (88_557_800, 15.358944256e9),
    'tiny_v0': (22_893_448, 5.626895040e9),
    'small_v0': (44_417_416, 11.231522784e9),
    'base_v0': (76_254_056, 18.020115136e9),
}
# published: billions of FLOPs at further sizes
SIZES = (224, 288, 384, 512, 640, 768)
TABLE = {
    'tiny_s1l8': (4.91, 8.11, 14.41, 25.63, 40.04, 57.66),
    'tiny_s2l5': (4.86, 8.03, 14.27, 25.38, 39.65, 57.09),
    'tiny_v0': (5.63, 9.30, 16.53, 29.39, 45.93, 66.14),
}


def count(config: dict, height: int, width: int) -> flops.Complexity:
    """Of a classifier whose parameters nobody has filled."""
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS

    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config)
    counted = flops.complexity(model.to_empty(device='cpu'), torch.zeros(1, 3, height, width))
    return counted


def vmamba(arch: str) -> dict:
    """The published classifier's config."""
    width, depths = ARCHS[arch]['embed_dims'], ARCHS[arch]['depths']
    return golden_runs.classifier_config(
        dict(dims=width, depths=depths, num_classes=_CLASSES, forward_type=''), arch=arch
    )


@functools.cache
def of_a_patch(arch: str) -> tuple[int, int, int]:
    """Parameters, FLOPs of 32 x 32 pixels, and of the head, which does not grow with the area as the rest does."""
    counted = count(vmamba(arch), 32, 32)
    head = 8 * ARCHS[arch]['embed_dims'] * _CLASSES
    return counted.parameters, counted.flops - head, head


def test_flops_grow_with_the_area():
    _, each, head = of_a_patch('tiny_s1l8')
    assert count(vmamba('tiny_s1l8'), 64, 96).flops == 6 * each + head


@pytest.mark.parametrize('arch', PUBLISHED)
def test_published_classifiers(arch):
    parameters, published = PUBLISHED[arch]
    ours, each, head = of_a_patch(arch)
    assert ours == parameters
    if arch.endswith('_v0'):  # as published to two decimals of a billion, not to the last digit
        assert round((49 * each + head) / 1e9, 2) == round(published / 1e9, 2)
    else:
        assert 49 * each + head == published


@pytest.mark.parametrize('arch', TABLE)
def test_larger_images(arch):
    _, each, head = of_a_patch(arch)
    assert tuple(round((each * (size // 32) ** 2 + head) / 1e9, 2) for size in SIZES) == TABLE[arch]


@pytest.mark.parametrize(
    ('arch', 'pool', 'billions'),
    [('tiny', 'mean', 1.15), ('tiny', None, 1.82), ('base', 'mean', 17.17)],
)
def test_fastvim(arch, pool, billions):
    """Nobody publishes these: the figures of an independent count by the same rules."""
    width = FASTVIMS[arch]['embed_dims']
    theirs = dict(embed_dim=width, depth=24, num_classes=_CLASSES, collapse_method=pool)
    assert round(count(golden_runs.classifier_config(theirs, arch=arch), 224, 224).flops / 1e9, 2) == billions


@pytest.mark.parametrize('name', ['demo/vmamba_shapes_cls', 'jumpcp/demo'])
def test_the_tool_counts_classifiers_at_their_size_and_channels(name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = f'configs/{name}.py'
    assert load_tool('analysis/get_flops').main([config]) == 0
    said = capsys.readouterr().out
    assert f'{config} at 224 x 224' in said
    assert 'parameters: 0' not in said
