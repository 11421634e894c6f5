"""Half precision stays at the operators' doors: inside it is float32, so large inputs do not overflow."""

import pytest
import torch
from mmvmamba.kernels import depthwise_conv_silu, selective_scan, ss2d, ss2d_norm
from mmvmamba.kernels.testing import (
    assert_close,
    output_and_gradients,
    pooled_scan_by_name,
    pooled_scan_inputs,
    scan_inputs,
    ss2d_inputs,
)

HALVES = [torch.float16, torch.bfloat16]
SCALE = 1e4  # float16 ends at 65504


def norm_inputs(dtype):
    arguments = ss2d_inputs(dtype=dtype)
    channels = arguments['x'].shape[3]
    return dict(arguments, norm_weight=torch.ones(channels), norm_bias=torch.zeros(channels))


CASES = {
    'selective_scan': (selective_scan, scan_inputs, ('u', 'delta', 'Bs', 'Cs')),
    'ss2d': (ss2d, ss2d_inputs, ('x',)),
    'ss2d_norm': (ss2d_norm, norm_inputs, ('x',)),
    'pooled_scan': (pooled_scan_by_name, pooled_scan_inputs, ('xz',)),
}


def large(inputs, scaled, dtype):
    """Random arguments, some of them scaled and then kept within what the dtype can hold."""
    arguments = inputs(dtype=dtype)
    top = torch.finfo(torch.float16).max
    for name in scaled:
        t = arguments[name].float()
        # a gate is a factor of the result itself, which must fit float16
        channels = t.shape[-1] // 2 if name == 'xz' else t.shape[-1]
        t[..., :channels] = (t[..., :channels] * SCALE).clamp(-top, top)
        arguments[name] = t.to(dtype)
    return arguments


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('name', CASES)
def test_large_inputs_stay_finite(name, dtype, backend_or_reference):
    function, inputs, scaled = CASES[name]
    arguments = large(inputs, scaled, dtype)
    y = function(**arguments, backend=backend_or_reference)
    assert y.isfinite().all()
    exact = function(**{k: v.double() for k, v in arguments.items()}, backend='reference')
    assert_close('y', y, exact, 1e-2 if y.dtype == torch.bfloat16 else 2e-3)


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
