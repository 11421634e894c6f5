"""The linear layer that is a convolution on the host: always the product that PyTorch's own gives."""

import pytest
import torch
from mmvmamba.kernels import linear as module
from mmvmamba.kernels.linear import linear
from mmvmamba.kernels.testing import assert_close, output_and_gradients
from torch.nn import functional as F


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def convolutions(monkeypatch):
    """Counts them: what is compared must not be the same code."""
    calls = []
    real = F.conv2d
    monkeypatch.setattr(F, 'conv2d', lambda *a, **k: calls.append(a[0].shape) or real(*a, **k))
    return calls


def _arguments(*shape, bias=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x, weight, b = (torch.randn(s, generator=generator, dtype=dtype) for s in (shape, (40, shape[-1]), (40,)))
    return {'x': x, 'weight': weight, 'bias': b if bias else None}


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('shape', [(1, 16, 40, 96), (2, 17, 25, 96), (640, 96)], ids=str)
def test_equals_pytorchs_linear(shape, bias, threads, convolutions):
    arguments = _arguments(*shape, bias=bias)
    y, grads = output_and_gradients(linear, arguments)
    assert len(convolutions) == 1
    expected, expected_grads = output_and_gradients(F.linear, arguments)
    assert_close('y', y, expected, 1e-6)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], 1e-6)


def test_reads_any_layout(threads, convolutions):
    arguments = _arguments(1, 32, 40, 96)
    turned = dict(arguments, x=arguments['x'].transpose(1, 2))
    assert_close('y', linear(**turned), F.linear(**turned), 1e-6)
    assert len(convolutions) == 1


@pytest.mark.parametrize('shape', [(0, 4, 4, 96), (1, 1, 1, 96), (1, 3, 5, 96), (96,)], ids=str)
def test_few_pixels_stay_with_pytorchs_linear(shape, threads, convolutions):
    arguments = _arguments(*shape)
    assert torch.equal(linear(**arguments), F.linear(**arguments))
    assert not convolutions


def test_only_plain_float32_is_taken(monkeypatch, convolutions):
    double = _arguments(1, 16, 40, 96, dtype=torch.float64)
    assert linear(**double).dtype == torch.float64
    with torch.autocast('cpu', torch.bfloat16):
        assert linear(**_arguments(1, 16, 40, 96)).dtype == torch.bfloat16
    monkeypatch.setattr(module.torch.backends.mkldnn, 'is_available', lambda: False)
    linear(**_arguments(1, 16, 40, 96))
    assert not convolutions


def test_compiles_to_the_linear(convolutions):
    arguments = _arguments(1, 16, 40, 96)
    compiled = torch.compile(linear, fullgraph=True, backend='aot_eager')
    assert torch.equal(compiled(**arguments), F.linear(**arguments))
    assert not convolutions


def test_the_feed_forward_half_in_pieces_equals_the_whole(monkeypatch):
    first, second = torch.nn.Linear(12, 48), torch.nn.Linear(48, 20)
    x = torch.randn(2, 9, 11, 12)
    whole = module.gelu_mlp(x, first, second)  # gradients are on: never in pieces
    monkeypatch.setattr(module, '_PIECE', 48 * 40)
    with torch.no_grad():
        pieces = module.gelu_mlp(x, first, second)
    assert pieces.shape == (2, 9, 11, 20)
    assert_close('y', pieces, whole.detach(), 1e-6)
