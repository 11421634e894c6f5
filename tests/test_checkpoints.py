"""Reading checkpoints: nothing in them runs, nothing that does not fit is used."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmvmamba import checkpoints

STATE = {'weight': torch.ones(2, 3), 'bias': torch.zeros(2)}


@pytest.mark.parametrize('wrap', [dict, lambda s: {'state_dict': s}, lambda s: {'model': s, 'epoch': 3}])
def test_reads_bare_and_contained(wrap, tmp_path):
    torch.save(wrap(STATE), tmp_path / 'c.pth')
    read = checkpoints.read(tmp_path / 'c.pth')
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[k], STATE[k]) for k in STATE)


def test_reads_safetensors(tmp_path):
    save_file(STATE, tmp_path / 'c.safetensors')
    assert torch.equal(checkpoints.read(tmp_path / 'c.safetensors')['weight'], STATE['weight'])


class Dangerous:
    def __reduce__(self):
        return os.system, ('touch ran',)


def test_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': STATE, 'meta': Dangerous()}, 'c.pth')
    with pytest.raises(checkpoints.CheckpointError, match='refused'):
        checkpoints.read('c.pth')
    (tmp_path / 'd.pth').write_bytes(pickle.dumps(Dangerous()))
    with pytest.raises(checkpoints.CheckpointError):
        checkpoints.read('d.pth')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('name', ['c.pth', 'c.safetensors'])
def test_truncated_file(name, tmp_path):
    whole = tmp_path / f'whole_{name}'
    (torch.save if name.endswith('pth') else save_file)(STATE, whole)
    (tmp_path / name).write_bytes(whole.read_bytes()[:-60])
    with pytest.raises(checkpoints.CheckpointError, match=f'{name} is truncated or damaged'):
        checkpoints.read(tmp_path / name)


def test_missing_file_and_no_parameters(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'gone\.pth does not exist'):
        checkpoints.read(tmp_path / 'gone.pth')
    torch.save({'epoch': 3}, tmp_path / 'c.pth')
    with pytest.raises(checkpoints.CheckpointError, match=r'holds no parameters.*epoch: int'):
        checkpoints.read(tmp_path / 'c.pth')


def test_mismatches_are_listed_up_to_twenty():
    model = nn.ModuleList([nn.Linear(3, 2) for _ in range(15)])
    with pytest.raises(checkpoints.CheckpointError) as caught:
        checkpoints.require_match(model, {'0.weight': torch.ones(4, 3), 'other': torch.ones(1)}, 'file.pth')
    text = str(caught.value)
    assert '29 missing:' in text
    assert '... and 9 more' in text
    assert '1 unexpected:\n  other (1,)' in text
    assert '0.weight: checkpoint (4, 3), model (2, 3)' in text
    checkpoints.require_match(model, model.state_dict(), 'file.pth')
