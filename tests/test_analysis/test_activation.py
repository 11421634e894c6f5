"""Contributions add up to what SS2D computes; nothing later on a route contributes."""

import pytest
import torch
from mmvmamba.kernels import depthwise_conv_silu, ss2d

from mmvmamba.analysis import activation
from mmvmamba.models import VMamba


def operator_output(op, x):
    """What the operator itself gives for every patch, before the norm."""
    values = op.in_proj(x[None])
    if op.gated:
        values = values.chunk(2, dim=-1)[0]
    values = depthwise_conv_silu(values, op.conv2d.weight, op.conv2d.bias)
    parameters = op.x_proj_weight, op.dt_projs_weight, op.dt_projs_bias, -torch.exp(op.A_logs), op.Ds
    return ss2d(values, *parameters, routes=op.routes)[0]


@pytest.mark.parametrize('routes', ['cross', 'unidi', 'bidi'])
@pytest.mark.parametrize('arch', ['tiny_s1l8', 'tiny_v0'])
def test_weights_times_values_are_the_operators_output(arch, routes):
    torch.manual_seed(0)
    backbone = VMamba(arch, embed_dims=16, depths=(1, 2), out_indices=(1,), routes=routes).eval()
    op, x = activation.layer_input(backbone, 1, 1, torch.randn(1, 3, 40, 56))
    with torch.no_grad():
        expected = operator_output(op, x)
    for query in ((0, 0), (2, 3), (x.shape[0] - 1, x.shape[1] - 1)):
        found = activation.contributions(op, x, query)
        torch.testing.assert_close(found.output().float(), expected[query], atol=1e-4, rtol=0)


def test_a_route_sees_only_what_came_before():
    backbone = VMamba(embed_dims=16, depths=(1,), out_indices=(0,)).eval()
    op, x = activation.layer_input(backbone, 0, 0, torch.randn(1, 3, 20, 24))
    found = activation.contributions(op, x, (2, 3))
    reached = found.weights.abs().sum(3) > 0
    height, width = reached.shape[1:]
    order = torch.arange(height * width).view(height, width)
    by_column = torch.arange(height * width).view(width, height).T
    assert torch.equal(reached[0], order <= order[2, 3])
    assert torch.equal(reached[1], by_column <= by_column[2, 3])
    assert torch.equal(reached[2], order >= order[2, 3])
    assert torch.equal(reached[3], by_column >= by_column[2, 3])
    assert torch.equal(found.products[0] != 0, reached[0])


def test_bad_places_are_named():
    backbone = VMamba(embed_dims=16, depths=(1,), out_indices=(0,)).eval()
    image = torch.randn(1, 3, 20, 24)
    with pytest.raises(ValueError, match=r'stage 1, block 0: expected a stage of 0 to 0, blocks: \[1\]'):
        activation.layer_input(backbone, 1, 0, image)
    op, x = activation.layer_input(backbone, 0, 0, image)
    with pytest.raises(ValueError, match=r'query=\(5, 0\) lies outside the grid of 5 x 6 patches'):
        activation.contributions(op, x, (5, 0))
    op.routes = 'cascade'
    with pytest.raises(ValueError, match="routes='cascade' mixes routes twice"):
        activation.contributions(op, x, (0, 0))
