"""The same seed gives the same bits, whichever backend runs."""

import pytest
import torch
from distributed_runs import BACKBONES, Net
from mmengine.optim import OptimWrapper
from mmvmamba.kernels import availability

ON_CPU = [name for name, reason in availability('cpu').items() if reason is None and name != 'triton']


def train(backbone):
    """The weights after two steps."""
    torch.manual_seed(0)
    net = Net(backbone)
    images, targets = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    net(images, targets)  # the lazy head learns its size
    optimizer = OptimWrapper(torch.optim.AdamW(net.parameters(), lr=0.01))
    for _ in range(2):
        net.train_step(dict(inputs=images, targets=targets), optimizer)
    return net.state_dict()


@pytest.mark.parametrize('backend', ON_CPU)
@pytest.mark.parametrize('backbone', BACKBONES)
def test_two_trainings_are_bit_identical(backbone, backend, monkeypatch):
    monkeypatch.setenv('MMVMAMBA_BACKEND', backend)
    first, second = train(backbone), train(backbone)
    assert all(torch.equal(first[name], second[name]) for name in first)
