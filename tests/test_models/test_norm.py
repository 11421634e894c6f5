"""Root mean square normalisation where the input's own dtype would not do."""

import pytest
import torch

from mmvmamba.models.layers import norm


@pytest.mark.parametrize('wide', [True, False], ids=['by_pytorch', 'by_us'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_small_inputs_in_half_precision(dtype, wide, monkeypatch):
    """Whose squares vanish in float16, and whose gradients are large."""
    if wide and not norm._COMPUTES_WIDE:
        pytest.skip("this PyTorch's own computes in the input's dtype")
    monkeypatch.setattr(norm, '_COMPUTES_WIDE', wide)
    generator = torch.Generator().manual_seed(0)
    module = norm.RMSNorm(64, eps=1e-5).to(dtype)
    x = (1e-3 * torch.randn(8, 64, generator=generator)).to(dtype)
    outs = []
    for kind in (dtype, torch.float64):
        leaf = x.to(kind).requires_grad_()
        y = module.to(kind)(leaf)
        (dx,) = torch.autograd.grad(y.square().sum(), leaf)
        assert (y.dtype, dx.dtype) == (kind, kind)
        outs.append((y.double(), dx.double()))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for actual, expected in zip(*outs, strict=True):
        assert (actual - expected).norm() <= tolerance * expected.norm()
