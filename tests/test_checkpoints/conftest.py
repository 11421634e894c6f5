import pytest
import torch
from golden_runs import parameters_of
from mmvmamba.kernels.testing import load_golden
from published_files import DATA, fastvim_golden
from weight_host import Host

from mmvmamba.checkpoints import download, published


@pytest.fixture(scope='module')
def golden():
    """Published names and values of a small current and a small vanilla model, their inputs and outputs."""
    found = {}
    for name in ('s1', 'v0'):
        tensors, metadata = load_golden(DATA / f'vmamba_{name}.safetensors')
        found[name] = parameters_of(tensors), tensors, metadata['official_kwargs']
    return found


@pytest.fixture(scope='module')
def fastvim():
    return fastvim_golden('fastvim')


@pytest.fixture
def host():
    server = Host()
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch hub, and nothing of this machine's settings."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    for name in (download.FOLDER, download.OFFLINE, 'MMVMAMBA_MIRROR'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, '_PAUSE', 0.0)
    return tmp_path / 'hub/checkpoints'


@pytest.fixture
def mirror(host, cache, monkeypatch):
    """The loopback in the place of every author's host."""
    monkeypatch.setenv('MMVMAMBA_MIRROR', host.address)
    return host


@pytest.fixture(scope='session')
def entry():
    return published()['vmamba_tiny_s1l8']
