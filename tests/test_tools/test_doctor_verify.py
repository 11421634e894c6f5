"""`doctor.py --verify` and the doctor's rows on verdicts, where Triton could run as far as nothing is launched."""

import pytest
import torch
from mmengine.config import Config
from mmvmamba.kernels import dispatch
from tool_runs import ROOT, load_tool
from triton_runs import OLDEST_TRITON

pytest.importorskip('triton', minversion=OLDEST_TRITON)

from mmvmamba.kernels import verify
from mmvmamba.kernels.shared_triton import numerics, scan
from mmvmamba.kernels.verify import verdicts
from mmvmamba.kernels.verify.verdicts import Verdict

from mmvmamba.analysis import needed_kernels
from mmvmamba.engine import launch

CONFIG = str(ROOT / 'configs/maskrcnn_vmamba_t.py')


@pytest.fixture
def doctor():
    return load_tool('doctor')


@pytest.fixture
def machine(monkeypatch, tmp_path):
    monkeypatch.setattr(dispatch, '_why_not', lambda backend, device_type, dtype: None)
    monkeypatch.setattr(verdicts, '_gpu', lambda device: ('NVIDIA Nothing', '9.0'))
    monkeypatch.setattr(verdicts, 'default_folder', lambda: tmp_path)
    monkeypatch.delenv('MMVMAMBA_VERIFY', raising=False)
    for module in (scan, numerics):
        monkeypatch.setattr(module, 'multiprocessors', lambda device: 132)
    dispatch.forget()
    verify.forget()
    yield
    dispatch.forget()
    verify.forget()


def test_every_variant_of_a_config_is_checked_and_what_failed_again(doctor, machine, monkeypatch, tmp_path):
    checked = []

    def check(call, plan):
        checked.append(call)
        passed = (call.operator, call.direction) != ('depthwise_conv_silu', 'backward')
        return Verdict(passed, '' if passed else 'on purpose', {'y': [1e-6, 1e-7, 5e-5]}, 0.1)

    monkeypatch.setattr(verify, 'run_check', check)
    shapes = [(1, 32, 64)]
    config = tmp_path / 'tiny.py'
    config.write_text("model = dict(backbone=dict(type='mmvmamba.VMamba', embed_dims=8, depths=(1, 1, 1, 1)))")
    rows = doctor.verify_kernels(str(config), shapes, jobs=2, device='cpu')
    assert len(checked) == len(rows)
    kinds = {(row['operator'], row['direction'], row['call'].partition(',')[0]) for row in rows}
    ways = [(name, way) for name in ('depthwise_conv_silu', 'ss2d_norm') for way in ('forward', 'backward')]
    assert kinds == {(*way, dtype) for way in ways for dtype in ('float32', 'bfloat16')}
    assert {call.tensors[0][1][3] for call in checked} == {8, 16, 32, 64}  # every stage
    assert {call.options[-1] for call in checked if call.operator == 'ss2d_norm'} == {True, False}  # training and test
    failed = [row for row in rows if not row['passed']]
    assert len(failed) == 8
    assert all(row['worst'] == '1.0e-06 of 5.0e-05' for row in rows)

    before = len(checked)
    assert doctor.verify_kernels(str(config), shapes, jobs=1, device='cpu') == rows
    assert len(checked) - before == len(failed)

    findings = doctor.list_verdicts(verify.store_of(torch.device('cpu')).entries())
    assert findings[0].detail == f'{len(rows) - 8} variants proved on this GPU, 8 failed'
    assert [f.name for f in findings[1:]] == ['depthwise_conv_silu backward'] * 8
    assert 'on purpose' in findings[1].detail
    assert '--verify' in findings[1].fix


def test_rows_without_verdicts(doctor):
    (row,) = doctor.list_verdicts({})
    assert (row.status, row.fix) == ('note', 'python tools/doctor.py --verify CONFIG')
    (row,) = doctor.list_verdicts({}, 'off')
    assert 'MMVMAMBA_VERIFY=off' in row.detail


def test_without_a_gpu_there_is_nothing_to_verify(doctor, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert doctor.main(['--verify', CONFIG]) == 1
    assert 'PyTorch sees no GPU' in capsys.readouterr().err


def test_without_triton_there_is_a_reason(doctor, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(dispatch, '_why_not', lambda *kind: 'triton 3.0.0 is too old')
    assert doctor.main(['--verify', CONFIG]) == 1
    assert 'the Triton kernels cannot run here: triton 3.0.0 is too old' in capsys.readouterr().err


def test_reasons_are_printed_as_they_are(doctor, capsys):
    reason = 'launched [[/usr, [bold]]]'
    row = dict(operator='ss2d', direction='forward', call='', passed=False, worst='', seconds=1.0, reason=reason)
    doctor.show_verdicts([row])
    assert reason in capsys.readouterr().out


@pytest.mark.parametrize('shape', ['800x1280', '2x800xwide', '0x800x1280'])
def test_shapes_that_are_none(doctor, shape, capsys):
    with pytest.raises(SystemExit):
        doctor.main(['--verify', CONFIG, '--shapes', shape])
    assert 'expected batch, height and width, such as 2x800x1280' in capsys.readouterr().err


def test_sizes_of_a_config():
    cfg = launch.load_config(CONFIG)
    found = needed_kernels.shapes(cfg)
    assert {(True, 2, 800, 1344), (True, 2, 1344, 800), (False, 1, 800, 1344), (False, 1, 960, 1600)} <= set(found)
    assert needed_kernels.dtypes(cfg) == [torch.float32, torch.bfloat16]
    assert {(512, 512), (512, 2048)} <= needed_kernels.sizes(
        [dict(type='Resize', scale=(2048, 512), ratio_range=(0.5, 2.0)), dict(type='RandomCrop', crop_size=512)]
    )
    with pytest.raises(ValueError, match='the model has no backbone'):
        needed_kernels.backbones(Config(dict(model=dict(type='Nothing'))))
