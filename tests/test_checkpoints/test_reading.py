"""Reading checkpoints: nothing in them runs."""

import argparse
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint
from published_files import Dangerous
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


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    save_file(STATE, tmp_path / 'c.safetensors')
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(checkpoints.CheckpointError, match='pip install safetensors'):
        checkpoints.read(tmp_path / 'c.safetensors')


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    """As mmengine's reader takes it: no shell expands the one in `load_from=~/c.pth`."""
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(STATE, tmp_path / 'c.pth')
    assert checkpoints.read('~/c.pth').keys() == STATE.keys()


def test_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': STATE, 'meta': Dangerous()}, 'c.pth')
    with pytest.raises(checkpoints.CheckpointError, match=r'refused: .* GLOBAL \w+\.system .*--trust-checkpoint'):
        checkpoints.read('c.pth')
    (tmp_path / 'd.pth').write_bytes(pickle.dumps(Dangerous()))
    with pytest.raises(checkpoints.CheckpointError):
        checkpoints.read('d.pth')
    assert not (tmp_path / 'ran').exists()


def test_trusted_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': STATE, 'meta': Dangerous()}, 'c.pth')
    model = nn.Linear(3, 2)
    checkpoints.load('c.pth', model, trust=True)
    assert torch.equal(model.weight, STATE['weight'])
    assert (tmp_path / 'ran').exists(), 'which is what the flag warns of'


def test_settings_are_read_without_the_package_they_come_from(tmp_path, monkeypatch):
    """As the authors of VMamba save them, beside the parameters; here is no yacs."""
    yacs, config = types.ModuleType('yacs'), types.ModuleType('yacs.config')
    config.CfgNode = type('CfgNode', (dict,), {'__module__': 'yacs.config'})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'yacs', yacs)
        patch.setitem(sys.modules, 'yacs.config', config)
        settings = config.CfgNode(MODEL=config.CfgNode(NAME='vssm1_tiny_0230s'))
        settings.__dict__['__immutable__'] = True
        content = {'model': STATE, 'config': settings, 'args': argparse.Namespace(lr=1e-3), 'max_accuracy': 82.6}
        torch.save(content, tmp_path / 'c.pth')
    read = checkpoints.read_file(tmp_path / 'c.pth')
    assert 'yacs' not in sys.modules
    assert read['config'] == {'MODEL': {'NAME': 'vssm1_tiny_0230s'}}
    assert read['args'].lr == 1e-3
    assert torch.equal(read['model']['weight'], STATE['weight'])
    monkeypatch.setitem(sys.modules, 'yacs', None)
    with pytest.raises(checkpoints.CheckpointError, match=r'not installed here.*yacs'):
        checkpoints.read(tmp_path / 'c.pth', trust=True)


@pytest.mark.parametrize('trust', [False, True])
@pytest.mark.parametrize('name', ['c.pth', 'c.safetensors'])
def test_truncated_file(name, trust, tmp_path):
    whole = tmp_path / f'whole_{name}'
    (torch.save if name.endswith('pth') else save_file)(STATE, whole)
    (tmp_path / name).write_bytes(whole.read_bytes()[:-60])
    with pytest.raises(checkpoints.CheckpointError, match=f'{name} is truncated or damaged'):
        checkpoints.read(tmp_path / name, trust=trust)


def test_missing_file_and_no_parameters(tmp_path):
    (tmp_path / 'empty.pth').touch()
    with pytest.raises(checkpoints.CheckpointError, match=r'empty\.pth is truncated or damaged'):
        checkpoints.read(tmp_path / 'empty.pth')
    with pytest.raises(FileNotFoundError, match=r'gone\.pth does not exist'):
        checkpoints.read(tmp_path / 'gone.pth')
    (tmp_path / 'epoch_2.pth').mkdir()
    with pytest.raises(checkpoints.CheckpointError, match=r'is a folder; .*zero_to_fp32\.py .* OUT -t epoch_2\.pth'):
        checkpoints.read(tmp_path / 'epoch_2.pth')
    torch.save({'epoch': 3}, tmp_path / 'c.pth')
    with pytest.raises(checkpoints.CheckpointError, match=r'holds no parameters.*epoch: int'):
        checkpoints.read(tmp_path / 'c.pth')


def training_state():
    """What mmengine keeps beside the parameters."""
    history = HistoryBuffer([1.5, 2.5], [1, 1])
    best = {'best': np.float64(0.25), 'seen': {np.int64(3)}, 'table': np.arange(6, dtype='float32').reshape(2, 3)}
    return {'state_dict': STATE, 'message_hub': {'log_scalars': {'train/loss': history}, 'runtime_info': best}}


def check_training_state(content):
    hub = content['message_hub']
    assert hub['log_scalars']['train/loss'].statistics('mean') == 2.0
    assert hub['runtime_info']['best'] == 0.25
    assert hub['runtime_info']['seen'] == {3}
    assert hub['runtime_info']['table'].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize('safe_globals', ['as here', 'as in torch 2.4'])
def test_training_state_is_read_and_nothing_else_becomes_readable(safe_globals, tmp_path, monkeypatch):
    if safe_globals == 'as in torch 2.4':
        monkeypatch.delattr(torch.serialization, 'safe_globals', raising=False)
    torch.save(training_state(), tmp_path / 'c.pth')
    torch.serialization.add_safe_globals([Dangerous])
    try:
        before = set(torch.serialization.get_safe_globals())
        check_training_state(checkpoints.read_file(tmp_path / 'c.pth'))
        (tmp_path / 'cut.pth').write_bytes((tmp_path / 'c.pth').read_bytes()[:-100])
        with pytest.raises(checkpoints.CheckpointError):
            checkpoints.read_file(tmp_path / 'cut.pth')
        assert set(torch.serialization.get_safe_globals()) == before
    finally:
        torch.serialization.clear_safe_globals()


@pytest.mark.parametrize('name', ['core', '_core'])
def test_files_written_beside_another_numpy(name, tmp_path):
    """NumPy 2 renamed `numpy.core`, which pickles of arrays and numbers name."""
    torch.save(training_state(), tmp_path / 'own.pth')
    with zipfile.ZipFile(tmp_path / 'own.pth') as own, zipfile.ZipFile(tmp_path / 'other.pth', 'w') as other:
        for entry in own.namelist():
            content = own.read(entry)
            if entry.endswith('data.pkl'):
                assert b'cnumpy._core.multiarray\n' in content or b'cnumpy.core.multiarray\n' in content
                for theirs in (b'numpy.core.', b'numpy._core.'):
                    content = content.replace(b'c' + theirs + b'multiarray\n', f'cnumpy.{name}.multiarray\n'.encode())
            other.writestr(entry, content)
    check_training_state(checkpoints.read_file(tmp_path / 'other.pth'))


class Reaching:
    def __init__(self, owner, name):
        self.target = owner, name

    def __reduce__(self):
        return getattr, self.target


@pytest.mark.parametrize('target', [(HistoryBuffer, '__init__'), (np.ndarray, 'tofile'), (HistoryBuffer, '_log')])
def test_getattr_is_for_the_methods_of_histories(target, tmp_path):
    torch.save({'state_dict': STATE, 'meta': Reaching(*target)}, tmp_path / 'c.pth')
    with pytest.raises(checkpoints.CheckpointError, match='could run code and are refused: getattr'):
        checkpoints.read(tmp_path / 'c.pth')


class Made:
    """Pickles as a call, and what is to be set afterwards."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


POINTER = b'A' * 8
NO_OBJECTS = (3, '|', None, None, None, -1, -1, 0)  # flags of a dtype that has none
HIDDEN = (3, '|', (np.dtype('O'), (1,)), None, None, 8, 8, 0)  # numbers that are objects
SCALAR = np.float64(1).__reduce__()[0]
RECONSTRUCT = np.zeros(1).__reduce__()[0]


@pytest.mark.parametrize(
    'made',
    [
        Made(np.ndarray, ((1,), 'O', POINTER)),
        Made(
            RECONSTRUCT,
            (np.ndarray, (0,), b'b'),
            (1, (1,), Made(np.dtype, ('O8', False, True), NO_OBJECTS), 0, POINTER),
        ),
        Made(RECONSTRUCT, (np.ndarray, (0,), b'b'), (1, (1,), Made(np.dtype, ('V8', False, True), HIDDEN), 0, POINTER)),
    ],
    ids=['buffer', 'array', 'record'],
)
def test_bytes_of_a_file_are_never_taken_for_objects(made, tmp_path):
    torch.save({'state_dict': STATE, 'meta': made}, tmp_path / 'c.pth')
    with pytest.raises(checkpoints.CheckpointError):
        checkpoints.read_file(tmp_path / 'c.pth')


def test_numbers_and_objects_stay_what_they_are_whatever_a_file_claims(tmp_path):
    number = Made(SCALAR, (Made(np.dtype, ('f8', False, True), HIDDEN), np.float64(2.5).tobytes()))
    thing = Made(SCALAR, (Made(np.dtype, ('O8', False, True), NO_OBJECTS), POINTER))
    torch.save({'state_dict': STATE, 'meta': [number, thing]}, tmp_path / 'c.pth')
    assert checkpoints.read_file(tmp_path / 'c.pth')['meta'] == [2.5, POINTER]


def test_torchscript_is_refused_before_torch_looks_at_it(tmp_path, monkeypatch):
    """PyTorch before 2.6 hands it to `torch.jit.load` whatever was asked."""
    torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3)).save(tmp_path / 'c.pth')
    monkeypatch.setattr(torch, 'load', None)
    with pytest.raises(checkpoints.CheckpointError, match='could run code and are refused: a TorchScript program'):
        checkpoints.read(tmp_path / 'c.pth')


def test_a_file_of_the_old_format_cut_anywhere(tmp_path):
    torch.save({'state_dict': STATE, 'epoch': 70000}, tmp_path / 'whole.pth', _use_new_zipfile_serialization=False)
    whole = (tmp_path / 'whole.pth').read_bytes()
    for end in range(0, len(whole) - 1, 7):
        (tmp_path / 'c.pth').write_bytes(whole[:end])
        with pytest.raises(checkpoints.CheckpointError):
            checkpoints.read(tmp_path / 'c.pth')


def test_a_guard_holds_for_mmengines_readers_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(training_state(), 'state.pth')
    torch.save({'model': STATE, 'meta': Dangerous()}, 'code.pth')
    schemes, allowed = CheckpointLoader._schemes, list(torch.serialization.get_safe_globals())
    model = nn.Linear(3, 2)
    with checkpoints.guard():
        check_training_state(load_checkpoint(model, 'state.pth'))
        assert torch.equal(model.weight, STATE['weight'])
        check_training_state(torch.load('state.pth', weights_only=True))
        with pytest.raises(checkpoints.CheckpointError, match='could run code'):
            load_checkpoint(model, 'code.pth')
        assert not (tmp_path / 'ran').exists()
    model.weight.data.zero_()
    with pytest.raises(FileNotFoundError), checkpoints.guard(trust=True):
        _ = load_checkpoint(model, 'code.pth'), load_checkpoint(model, 'none.pth')
    assert torch.equal(model.weight, STATE['weight']), 'which mmengine does not find under model'
    assert (tmp_path / 'ran').exists()
    assert CheckpointLoader._schemes is schemes
    assert torch.serialization.get_safe_globals() == allowed
    with pytest.raises(checkpoints.CheckpointError, match='could run code'):
        checkpoints.read('code.pth')


def test_a_guard_hides_what_mmengine_would_run_as_a_config(tmp_path):
    """Resuming runs `meta['config']`, of which older versions read the number of GPUs."""
    torch.save({'state_dict': STATE, 'meta': {'config': 'raise SystemExit', 'cfg': '', 'epoch': 1}}, tmp_path / 'c.pth')
    for trust, shown in ((False, {'cfg', 'epoch'}), (True, {'config', 'cfg', 'epoch'})):
        with checkpoints.guard(trust):
            assert CheckpointLoader.load_checkpoint(str(tmp_path / 'c.pth'))['meta'].keys() == shown


def test_entries_by_name(tmp_path):
    content = {'net': STATE, 'net_ema': {k: v + 1 for k, v in STATE.items()}, 'epoch': 3}
    model = nn.Linear(3, 2)
    with pytest.raises(checkpoints.CheckpointError, match="another name: container='net'"):
        checkpoints.load(content, model)
    report = checkpoints.load(content, model, container='net_ema')
    assert torch.equal(model.weight, STATE['weight'] + 1)
    assert "entry 'net_ema'; it also has ['net'], which container='net' would take" in str(report)
    with pytest.raises(checkpoints.CheckpointError, match=r"container='epoch'; expected one of \['net', 'net_ema'\]"):
        checkpoints.load(content, model, container='epoch')
