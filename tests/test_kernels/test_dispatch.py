"""Which backend runs, who decides it, and what is said when one cannot."""

import subprocess
import sys

import pytest
import torch
from mmvmamba.kernels import BackendUnavailableError, availability, dispatch, selective_scan
from mmvmamba.kernels.testing import scan_inputs
from triton_runs import OLDEST_TRITON


def test_unknown_backend_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"selective_scan: backend='cuda' is unknown; expected 'auto' or one of"):
        selective_scan(**scan_inputs(), backend='cuda')


def test_the_environment_decides_for_auto(monkeypatch):
    monkeypatch.setenv('MMVMAMBA_BACKEND', 'reference')
    assert dispatch.choose('selective_scan', 'auto', 'cpu') == 'reference'


def test_an_argument_beats_the_environment(monkeypatch):
    monkeypatch.setenv('MMVMAMBA_BACKEND', 'reference')
    assert dispatch.choose('selective_scan', 'torch', 'cpu') == 'torch'


def test_a_wrong_environment_is_named(monkeypatch):
    monkeypatch.setenv('MMVMAMBA_BACKEND', 'fast')
    with pytest.raises(ValueError, match=r"MMVMAMBA_BACKEND='fast' is unknown"):
        selective_scan(**scan_inputs())


def test_refusal_says_why_and_what_can_run(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    with pytest.raises(
        BackendUnavailableError, match=r"'triton' cannot run on cpu: .*Backends that can run here: .*'torch'"
    ):
        selective_scan(**scan_inputs(), backend='triton')


def test_auto_never_takes_the_reference(monkeypatch):
    monkeypatch.delenv('MMVMAMBA_BACKEND', raising=False)
    assert dispatch.choose('ss2d', 'auto', 'cpu') in ('cpu', 'torch')


@pytest.mark.parametrize(
    'operator', [name for name, found in dispatch._operators.items() if 'triton' in found._modules]
)
def test_on_a_gpu_auto_leaves_it_to_each_variant(operator, monkeypatch, caplog):
    pytest.importorskip('triton', minversion=OLDEST_TRITON)
    monkeypatch.delenv('MMVMAMBA_BACKEND', raising=False)
    caplog.set_level('INFO', 'mmvmamba.kernels')
    dispatch.forget()
    for _ in range(3):
        assert dispatch.choose(operator, 'auto', 'cuda', torch.bfloat16) == 'auto'
    assert [r.getMessage() for r in caplog.records] == [
        f'{operator} on cuda: using the triton backend, each variant once it has proved itself on this GPU'
    ]
    assert dispatch.choose(operator, 'auto', 'cuda', torch.float64) == 'torch'


def test_without_triton_a_gpu_takes_pytorch(monkeypatch, caplog):
    monkeypatch.delenv('MMVMAMBA_BACKEND', raising=False)
    monkeypatch.setitem(dispatch._why_not.__globals__, 'OLDEST_TRITON', (99, 0))
    pytest.importorskip('triton')
    caplog.set_level('INFO', 'mmvmamba.kernels')
    dispatch.forget()
    assert dispatch.choose('ss2d', 'auto', 'cuda') == 'torch'
    dispatch.forget()
    assert 'is too old; expected 99.0 or newer' in caplog.text


def test_what_is_asked_for_by_name_is_said_to_be_unchecked(monkeypatch, caplog):
    pytest.importorskip('triton', minversion=OLDEST_TRITON)
    caplog.set_level('INFO', 'mmvmamba.kernels')
    dispatch.forget()
    assert dispatch.choose('ss2d', 'triton', 'cuda') == 'triton'
    assert 'asked for by name need not prove itself first' in caplog.text


def test_a_wrong_way_to_verify_is_named_at_the_door(monkeypatch):
    pytest.importorskip('triton', minversion=OLDEST_TRITON)
    monkeypatch.delenv('MMVMAMBA_BACKEND', raising=False)
    monkeypatch.setenv('MMVMAMBA_VERIFY', 'never')
    dispatch.forget()
    with pytest.raises(ValueError, match=r"MMVMAMBA_VERIFY='never' is unknown; expected one of"):
        dispatch.choose('ss2d', 'auto', 'cuda')
    dispatch.forget()


def test_availability_covers_every_backend():
    report = availability('cpu')
    assert list(report) == list(dispatch.BACKENDS)
    assert report['reference'] is None
    assert report['torch'] is None
    assert isinstance(report['triton'], str)


def test_the_choice_is_logged_once():
    code = (
        'import logging; logging.basicConfig(level=logging.INFO)\n'
        'from mmvmamba.kernels import selective_scan\n'
        'from mmvmamba.kernels.testing import scan_inputs\n'
        'for _ in range(3): selective_scan(**scan_inputs(length=3))\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stderr.count('selective_scan on cpu: using the') == 1


def test_import_is_light():
    code = (
        'import sys, mmvmamba.kernels\n'
        "heavy = [m for m in ('triton', 'numba', 'mmengine', 'mmcv', 'mmdet', 'mmseg') if m in sys.modules]\n"
        'assert not heavy, heavy\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_meta_tensors_give_shapes():
    y = selective_scan(**{k: v.to('meta') for k, v in scan_inputs().items()}, backend='torch')
    assert y.shape == (2, 32, 33)
    assert y.dtype == torch.float32


def test_an_old_triton_is_named(monkeypatch):
    triton = pytest.importorskip('triton')
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    monkeypatch.setattr(triton, '__version__', '3.0.0')
    with pytest.raises(BackendUnavailableError, match=r'triton 3\.0\.0 is too old; expected 3\.6 or newer'):
        selective_scan(**scan_inputs(), backend='triton')


@pytest.mark.parametrize('operator', dispatch._operators.values(), ids=lambda operator: operator.name)
def test_a_missing_implementation_is_named(operator, monkeypatch):
    monkeypatch.setattr(operator, '_modules', {})
    with pytest.raises(BackendUnavailableError, match=f'{operator.name} has no decomposed implementation'):
        operator.load(dispatch.DECOMPOSED)
