"""Checkpoints survive what happens while they are written, and damaged ones are passed over."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mmvmamba.checkpoints import CheckpointError
from mmvmamba.engine import durable


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 1)

    def forward(self, inputs, mode='loss'):
        return dict(loss=self.body(torch.stack(inputs)).pow(2).mean())


def train(folder, epochs=4, **hook):
    runner = Runner(
        Net(),
        str(folder),
        train_dataloader=dict(
            dataset=[dict(inputs=torch.ones(2))] * 2,
            batch_size=1,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(logger=None, checkpoint=dict(type='mmvmamba.DurableCheckpointHook', **hook)),
        experiment_name=folder.name,
        default_scope='mmengine',
    )
    runner.train()
    return runner


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != '.py')


def test_the_hook_keeps_as_many_as_it_is_told(tmp_path):
    train(tmp_path, interval=1, max_keep_ckpts=2)
    assert names(tmp_path) == ['epoch_3.pth', 'epoch_4.pth', 'last_checkpoint']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_4.pth')
    assert durable.latest(tmp_path) == (str(tmp_path / 'epoch_4.pth'), [])


def test_the_old_one_stays_until_the_new_one_is_there(tmp_path, monkeypatch):
    """Even where only one may stay."""
    seen = []
    replace = os.replace

    def spy(source, target):
        seen.append((os.path.basename(target), names(tmp_path)))
        replace(source, target)

    monkeypatch.setattr(os, 'replace', spy)
    train(tmp_path, epochs=2, interval=1, max_keep_ckpts=1)
    assert seen[2] == ('epoch_2.pth', ['epoch_1.pth', 'epoch_2.pth.tmp', 'last_checkpoint'])
    assert seen[3] == ('last_checkpoint', ['epoch_1.pth', 'epoch_2.pth', 'last_checkpoint', 'last_checkpoint.tmp'])
    assert names(tmp_path) == ['epoch_2.pth', 'last_checkpoint']


def test_the_best_one_is_durable_too(tmp_path, monkeypatch):
    runner = train(tmp_path, epochs=1, interval=1, save_best='accuracy')
    moved = []
    monkeypatch.setattr(durable, '_replace', lambda source, target: moved.append(target.name))
    runner.call_hook('after_val_epoch', metrics=dict(accuracy=0.5))
    assert moved[0] == 'best_accuracy_epoch_1.pth'


@pytest.mark.skipif(os.name != 'posix', reason='SIGKILL')
@pytest.mark.parametrize('moment', ['fsync', 'replace'])
def test_a_kill_while_writing_leaves_the_file_before(moment, tmp_path):
    code = (
        'import os, signal, sys\nfrom types import SimpleNamespace\nfrom pathlib import Path\n'
        'from mmvmamba.engine import durable\n'
        f'os.{moment} = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n'
        'write = lambda folder, name: Path(folder, name).write_text("new")\n'
        'durable.save(SimpleNamespace(save_checkpoint=write), sys.argv[1], "a.pth")\n'
    )
    (tmp_path / 'a.pth').write_text('old')
    done = subprocess.run([sys.executable, '-c', code, tmp_path], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / 'a.pth').read_text() == 'old'


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b'')


def remove(path):
    path.unlink()


class Code:
    def __reduce__(self):
        return print, ('this ran',)


def carry_code(path):
    torch.save(dict(torch.load(path, weights_only=False), extra=Code()), path)


@pytest.mark.parametrize('damage', [cut, empty, remove, carry_code], ids=lambda f: f.__name__)
def test_damage_falls_back_to_the_one_before(damage, tmp_path, capsys):
    train(tmp_path, interval=1)
    damage(tmp_path / 'epoch_4.pth')
    cut(tmp_path / 'epoch_3.pth')
    found, reasons = durable.latest(tmp_path)
    assert found == str(tmp_path / 'epoch_2.pth')
    assert [str(tmp_path / f'epoch_{n}.pth') in reason for n, reason in zip((4, 3), reasons, strict=True)] == [True] * 2
    assert 'this ran' not in capsys.readouterr().out


def test_code_may_be_trusted(tmp_path, capsys):
    train(tmp_path, epochs=2, interval=1)
    carry_code(tmp_path / 'epoch_2.pth')
    assert durable.latest(tmp_path, trust=True) == (str(tmp_path / 'epoch_2.pth'), [])
    assert 'this ran' in capsys.readouterr().out


def test_a_flipped_bit_is_noticed(tmp_path):
    """torch.load would not: it reads past checksums."""
    torch.save(dict(state_dict=dict(a=torch.full((1000,), 1.5))), tmp_path / 'epoch_2.pth')
    torch.save(dict(state_dict=dict(a=torch.ones(1))), tmp_path / 'epoch_1.pth')
    content = (tmp_path / 'epoch_2.pth').read_bytes()
    number = torch.tensor([1.5]).numpy().tobytes()
    (tmp_path / 'epoch_2.pth').write_bytes(content.replace(number * 500, number * 499 + b'\0\0\0\0', 1))
    assert torch.load(tmp_path / 'epoch_2.pth')['state_dict']['a'].shape == (1000,)
    found, reasons = durable.latest(tmp_path)
    assert found.endswith('epoch_1.pth')
    assert 'checksum' in reasons[0]


def test_nothing_usable_is_an_error_and_nothing_at_all_is_none(tmp_path):
    assert durable.latest(tmp_path) == (None, [])
    assert durable.latest(tmp_path / 'nowhere') == (None, [])
    train(tmp_path, epochs=1, interval=1)
    cut(tmp_path / 'epoch_1.pth')
    with pytest.raises(CheckpointError, match=r'(?s)no checkpoint in .* can be read.*epoch_1\.pth.*another --work-dir'):
        durable.latest(tmp_path)


def test_an_emptied_pointer_is_made_up_for(tmp_path):
    train(tmp_path, interval=1)
    (tmp_path / 'last_checkpoint').write_text('')
    assert durable.latest(tmp_path)[0] == str(tmp_path / 'epoch_4.pth')


def test_later_files_of_another_run_are_not_taken(tmp_path):
    train(tmp_path, interval=1)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_3.pth'))
    cut(tmp_path / 'epoch_3.pth')
    assert durable.latest(tmp_path)[0] == str(tmp_path / 'epoch_2.pth')
