import pytest
import torch
from weight_host import Host

from mmvmamba.checkpoints import download, published


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
