import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from mmvmamba.torchvision_stubs import define_missing_operators

define_missing_operators()  # tests that import a toolbox before anything of ours
TRITON = Path(__file__).parent / 'test_kernels' / 'test_triton.py'


def pytest_addoption(parser):
    parser.addoption('--kills', type=int, default=4, help='how often a training is killed and resumed (default: 4)')


@pytest.fixture(scope='session')
def data_dir() -> Path:
    """Golden tensors, measured on the published implementations."""
    return Path(__file__).parent / 'data'


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session', autouse=True)
def interpreters(request, tmp_path_factory):
    """For every file of Triton cases a process with Triton's interpreter: path to process and log.

    They start with the session, if it will ask for them, and take the time that the other tests leave idle.
    """
    running = {}
    if any(item.path == TRITON for item in request.session.items):
        folder = tmp_path_factory.mktemp('interpreter')
        environment = dict(os.environ, TRITON_INTERPRET='1', OMP_NUM_THREADS='1')
        arguments = ('-q', '-x', '-p', 'no:cacheprovider', '--show-capture=no', '--durations=3')
        for path in sorted(TRITON.parent.glob('triton*_cases.py')):
            log = folder / f'{path.stem}.log'
            command = [*(['nice'] if os.name == 'posix' else []), sys.executable, '-m', 'pytest', *arguments, str(path)]
            with log.open('w') as file:
                running[path] = subprocess.Popen(command, stdout=file, stderr=file, env=environment), log
    yield running
    for process, _ in running.values():
        process.kill()
        process.wait()


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
