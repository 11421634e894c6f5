from pathlib import Path

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption('--kills', type=int, default=4, help='how often a training is killed and resumed (default: 4)')


@pytest.fixture(scope='session')
def data_dir() -> Path:
    """Golden tensors, measured on the published implementations."""
    return Path(__file__).parent / 'data'


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
