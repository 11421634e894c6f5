"""Half precision stays at the operators' doors: inside it is float32, so large inputs do not overflow."""

import pytest
import torch
from large_inputs import CASES, SCALE, large
from mmvmamba.kernels import depthwise_conv_silu
from mmvmamba.kernels.testing import TOLERANCE, assert_close, output_and_gradients

HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('name', CASES)
def test_large_inputs_stay_finite(name, dtype, backend_or_reference):
    function, inputs, scaled = CASES[name]
    arguments = large(inputs, scaled, dtype)
    y = function(**arguments, backend=backend_or_reference)
    assert y.isfinite().all()
    exact = function(**{k: v.double() for k, v in arguments.items()}, backend='reference')
    assert_close('y', y, exact, TOLERANCE[y.dtype])


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('name', ['ss2d_norm', 'pooled_scan'])
def test_gradients_of_normalised_results_stay_finite(name, dtype, backend_or_reference):
    function, inputs, scaled = CASES[name]
    y, gradients = output_and_gradients(function, large(inputs, scaled, dtype), backend=backend_or_reference)
    assert y.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('name', CASES)
def test_autocast_changes_nothing_inside(name, dtype, backend_or_reference):
    """The same tensors give the same bits in and outside autocast: nothing within is rounded to half precision."""
    function, inputs, _ = CASES[name]
    arguments = inputs(dtype=torch.float32)
    plain = function(**arguments, backend=backend_or_reference)
    with torch.autocast('cpu', dtype=dtype):
        autocast = function(**arguments, backend=backend_or_reference)
    assert torch.equal(plain, autocast)


@pytest.mark.parametrize('dtype', HALVES, ids=str)
def test_the_convolution_takes_large_inputs(dtype):
    x = torch.randn(1, 5, 7, 8).mul(SCALE / 4).to(dtype)
    weight, bias = torch.randn(8, 1, 3, 3, dtype=torch.float32) / 3, torch.randn(8)
    with torch.autocast('cpu', dtype=dtype):
        assert depthwise_conv_silu(x, weight, bias).isfinite().all()
