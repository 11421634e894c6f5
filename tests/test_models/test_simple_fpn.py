"""The simple pyramid: strides, its parts against plain convolutions, and bad input."""

import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn
from torch.export import Dim, export
from torch.nn import functional as F

from mmvmamba.models import LN2d, SimpleFPN
from mmvmamba.models.necks.simple_fpn import HalvingMaxPool
from mmvmamba.registry import MODELS


@pytest.mark.parametrize('size', [(8, 12), (5, 7), (1, 1)], ids=str)
def test_levels(size):
    height, width = size
    outs = SimpleFPN(16, 24)((torch.randn(2, 16, height, width),))
    halves = [(height + 1) // 2, (width + 1) // 2]
    expected = [(4 * height, 4 * width), (2 * height, 2 * width), size, tuple(halves)]
    expected.append(tuple((side + 1) // 2 for side in halves))
    assert [tuple(out.shape) for out in outs] == [(2, 24, *side) for side in expected]
    assert all(out.is_contiguous() for out in outs), 'mmcv RoIAlign ignores strides'


def test_exported_program_takes_all_sizes():
    neck = SimpleFPN(16, 24)
    sides = {2: Dim('height', min=5), 3: Dim('width', min=5)}  # no level one pixel wide
    program = export(neck, ((torch.randn(1, 16, 8, 12),),), dynamic_shapes=((sides,),)).module()
    for size in ((8, 12), (7, 9), (14, 14)):
        maps = (torch.randn(1, 16, *size),)
        for out, expected in zip(program(maps), neck(maps), strict=True):
            torch.testing.assert_close(out, expected)
        halved = neck.levels[3][0](maps[0])
        assert torch.equal(halved, F.max_pool2d(maps[0], 2, stride=2, ceil_mode=True))


@pytest.mark.parametrize(
    ('scales', 'num_outs', 'strides'),
    [((4, 2, 1, 0.5), 5, [4, 8, 16, 32, 64]), ((2, 1, 0.5), 4, [8, 16, 32, 64]), ((1,), 1, [16]), ((1,), 2, [16, 32])],
)
def test_scales(scales, num_outs, strides):
    outs = SimpleFPN(8, 12, num_outs=num_outs, scales=scales)((torch.randn(1, 8, 16, 32),))
    assert [out.shape[2:] for out in outs] == [(256 // stride, 512 // stride) for stride in strides]


def test_ln2d_normalises_the_channels_of_each_pixel():
    norm = LN2d(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 3, 5)
    centred = x - x.mean(1, keepdim=True)
    variance = centred.square().mean(1, keepdim=True)
    expected = centred / (variance + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)


def test_parts_in_order():
    neck = SimpleFPN(16, 24)
    kinds = [[type(module) for module in level] for level in neck.levels]
    tail = [nn.Conv2d, LN2d, nn.Conv2d, LN2d]
    assert kinds == [
        [nn.ConvTranspose2d, LN2d, nn.GELU, nn.ConvTranspose2d, *tail],
        [nn.ConvTranspose2d, *tail],
        tail,
        [HalvingMaxPool, *tail],
    ]
    x = torch.randn(1, 16, 4, 6)
    outs = neck((x,))
    first, norm1, second, norm2 = neck.levels[3][1:]
    assert (first.kernel_size, second.kernel_size) == ((1, 1), (3, 3))
    coarse = norm2(F.conv2d(norm1(F.conv2d(F.max_pool2d(x, 2), first.weight)), second.weight, padding=1))
    torch.testing.assert_close(outs[3], coarse)
    assert torch.equal(outs[4], outs[3][:, :, ::2, ::2])


def test_every_parameter_gets_a_gradient():
    neck = SimpleFPN(16, 24)
    outs = neck((torch.randn(2, 16, 4, 4),))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    assert [name for name, p in neck.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_type_names_and_norm_cfg():
    for registry in (ROOT_MODELS, MODELS):
        assert type(registry.build(dict(type='SimpleFPN', in_channels=8))) is SimpleFPN
    mmcv_cnn = pytest.importorskip('mmcv.cnn')
    conv = mmcv_cnn.ConvModule(4, 8, 3, norm_cfg=dict(type='LN2d'))
    assert isinstance(conv.norm, LN2d)
    assert conv(torch.randn(1, 4, 6, 6)).shape == (1, 8, 4, 4)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(in_channels=[8, 16]), r'in_channels=\[8, 16\]; expected one positive multiple of 4'),
        (dict(in_channels=18), 'in_channels=18; expected one positive multiple of 4'),
        (dict(in_channels=8, scales=(8, 4)), r'scales=\(8, 4\); expected a descending choice'),
        (dict(in_channels=8, scales=(1, 2)), r'scales=\(1, 2\)'),
        (dict(in_channels=8, scales=()), r'scales=\(\)'),
        (dict(in_channels=8, num_outs=3), 'num_outs=3; expected at least 4'),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        SimpleFPN(**arguments)


@pytest.mark.parametrize(
    ('maps', 'words'),
    [
        ((torch.zeros(1, 8, 2, 2),) * 4, 'got 4 maps; expected one'),
        ((torch.zeros(1, 4, 2, 2),), r'the map has shape \(1, 4, 2, 2\); expected \(B, 8, H, W\)'),
    ],
)
def test_bad_maps(maps, words):
    with pytest.raises(ValueError, match=words):
        SimpleFPN(8)(maps)
