import subprocess
import sys
import zipfile
from pathlib import Path

import interpreter
import pytest
import torch

from mmvmamba.torchvision_stubs import define_missing_operators

define_missing_operators()  # tests that import a toolbox before anything of ours


def pytest_addoption(parser):
    parser.addoption('--kills', type=int, default=4, help='how often a training is killed and resumed (default: 4)')


def pytest_configure(config):
    interpreter.register(config)


@pytest.fixture(scope='session')
def data_dir() -> Path:
    """Golden tensors, measured on the published implementations."""
    return Path(__file__).parent / 'data'


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp('wheel')
    command = [
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '--no-deps',
        '--no-build-isolation',
        '-q',
        '-w',
        str(out),
        str(Path(__file__).resolve().parents[1]),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    (path,) = out.glob('*.whl')
    return path


@pytest.fixture(scope='session')
def site(wheel, tmp_path_factory):
    """A folder with the wheel's content alone, put before the editable install of this environment."""
    folder = tmp_path_factory.mktemp('site')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder
