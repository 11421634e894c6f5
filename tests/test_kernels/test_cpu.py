"""What the compiled CPU backend promises beyond agreeing with the reference: threads, forks, falling back."""

import builtins
import ctypes
import importlib.util
import os
import subprocess
import sys
import threading

import pytest
import torch
from mmvmamba.kernels import BackendUnavailableError, dispatch, selective_scan, ss2d
from mmvmamba.kernels.testing import assert_close, output_and_gradients, relative_error, scan_inputs, ss2d_inputs

pytestmark = pytest.mark.skipif(importlib.util.find_spec('numba') is None, reason='numba is not installed')


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize('batch, channels', [(1, 20), (1, 96), (3, 40)])
def test_any_number_of_threads_gives_the_same(threads, batch, channels):
    arguments = ss2d_inputs(batch, 6, 9, channels)
    expected, gradients = output_and_gradients(ss2d, arguments, backend='reference')
    for _ in range(2):
        y, grads = output_and_gradients(ss2d, arguments, backend='cpu')
        assert_close('y', y, expected, 1e-5)
        for name, grad in grads.items():
            assert_close(name, grad, gradients[name], 1e-5)


def test_runs_are_bit_identical(threads):
    arguments = ss2d_inputs(2, 20, 30, 96)
    first, first_grads = output_and_gradients(ss2d, arguments, backend='cpu')
    second, second_grads = output_and_gradients(ss2d, arguments, backend='cpu')
    assert torch.equal(first, second)
    assert all(torch.equal(first_grads[name], second_grads[name]) for name in first_grads)


class _Recorder:
    """Stands in for a compiled function: which threads call it, and with what."""

    def __init__(self):
        self.threads = []
        self._callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.ctypes)
        self.address = ctypes.cast(self._callback, ctypes.c_void_p).value

    def ctypes(self, data):
        assert data == 16
        self.threads.append(threading.get_native_id())


@pytest.mark.parametrize('openmp', [True, False])
def test_torchs_thread_count_is_respected(monkeypatch, threads, openmp):
    from mmvmamba.kernels.shared_cpu import threads as module

    if not openmp:
        monkeypatch.setattr(module, '_openmp', lambda: None)
    for tasks, expected in ((5, threads), (1, 1), (0, 0)):
        recorder = _Recorder()
        module.run(recorder, 16, tasks)
        assert len(recorder.threads) == expected
        # a Python thread that has ended may hand its number on, an OpenMP thread stays
        assert not openmp or len(set(recorder.threads)) == expected


def test_python_threads_serve_where_torch_has_no_openmp(monkeypatch, threads):
    from mmvmamba.kernels.shared_cpu import threads as module

    arguments = ss2d_inputs(2, 6, 9, 96)
    expected = ss2d(**arguments, backend='cpu')
    monkeypatch.setattr(module, '_openmp', lambda: None)
    assert torch.equal(ss2d(**arguments, backend='cpu'), expected)


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere PyTorch brings other threads')
def test_torchs_own_openmp_is_found():
    from mmvmamba.kernels.shared_cpu.threads import _openmp

    assert (_openmp() is not None) == ('OpenMP' in torch.__config__.parallel_info().split('ATen parallel backend:')[1])


def _run(code, **environment):
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=240, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def test_forked_data_loader_workers():
    """The parent has used the threads already; each worker then runs the scan, as a model in a dataset would."""
    _run(
        'import torch\n'
        'from mmvmamba.kernels import ss2d\n'
        'from mmvmamba.kernels.testing import ss2d_inputs\n'
        'torch.set_num_threads(2)\n'
        'inputs = ss2d_inputs(1, 8, 8, 96)\n'
        "here = ss2d(**inputs, backend='cpu')\n"
        'class Data(torch.utils.data.Dataset):\n'
        '    def __len__(self): return 4\n'
        "    def __getitem__(self, i): return ss2d(**inputs, backend='cpu')[0]\n"
        "loader = torch.utils.data.DataLoader(Data(), num_workers=2, multiprocessing_context='fork', timeout=60)\n"
        'assert all(torch.allclose(batch, here, atol=1e-6) for batch in loader)\n'
    )


def test_a_forked_process_with_several_threads_does_not_wait_for_the_parents():
    """Only the scan itself: PyTorch's own operations hang in such a process as soon as they use a second thread."""
    _run(
        'import multiprocessing, torch\n'
        'from mmvmamba.kernels.shared_cpu.calls import Group, scan\n'
        'from mmvmamba.kernels.ss2d.routes import Route\n'
        'torch.set_num_threads(2)\n'
        'few = torch.rand(96)\n'
        'group = Group(torch.rand(1, 40, 96), torch.rand(1, 40, 1, 4), 0, torch.rand(96, 2), few, -torch.rand(96, 1), '
        'few, (4, 10), Route())\n'
        'here, there = torch.empty(1, 40, 96), torch.zeros(1, 40, 96).share_memory_()\n'
        'scan(group, here)\n'
        "child = multiprocessing.get_context('fork').Process(target=scan, args=(group, there))\n"
        'child.start()\n'
        'child.join(60)\n'
        'assert child.exitcode == 0, child.exitcode\n'
        'assert torch.equal(here, there)\n'
    )


def test_compiled_once_for_all_processes(tmp_path):
    """The first process says that it compiles; the second finds the result on the disk, and gets the same bits."""
    code = (
        'import torch\n'
        'from mmvmamba.kernels import ss2d\n'
        'from mmvmamba.kernels.testing import ss2d_inputs\n'
        "y = ss2d(**ss2d_inputs(1, 9, 11, 96), backend='cpu')\n"
        f'torch.save(y, {str(tmp_path / "result.pt")!r})\n'
    )
    assert "compiling the scan's forward pass" in _run(code, NUMBA_CACHE_DIR=str(tmp_path))
    files = sorted(tmp_path.rglob('*.nbc'))
    first = torch.load(tmp_path / 'result.pt', weights_only=True)
    assert 'compiling' not in _run(code, NUMBA_CACHE_DIR=str(tmp_path))
    second = torch.load(tmp_path / 'result.pt', weights_only=True)
    assert torch.equal(first, second)
    assert sorted(tmp_path.rglob('*.nbc')) == files
    changed = "import mmvmamba.kernels.shared_cpu.vectors as v; v.VERSION = 'of other sources'\n" + code
    assert 'compiling' in _run(changed, NUMBA_CACHE_DIR=str(tmp_path))


def test_only_contiguous_float32_reaches_the_compiled_code():
    from mmvmamba.kernels.shared_cpu.calls import Group, scan
    from mmvmamba.kernels.ss2d.routes import Route

    few = torch.rand(8)
    group = Group(torch.rand(1, 6, 8), torch.rand(1, 6, 1, 4), 0, torch.rand(8, 2), few, -torch.rand(8, 1), few, (2, 3),
                  Route())  # fmt: skip
    with pytest.raises(ValueError, match='expected contiguous float32'):
        scan(group._replace(x=torch.rand(1, 8, 6).mT), torch.empty(1, 6, 8))
    with pytest.raises(ValueError, match='float64'):
        scan(group, torch.empty(1, 6, 8, dtype=torch.float64))


@pytest.mark.parametrize('name', ['x', 'x_proj_weight', 'dt_projs_weight', 'dt_projs_bias', 'As', 'Ds'])
def test_not_a_number_is_passed_on(name):
    arguments = ss2d_inputs(1, 4, 5, 32)
    arguments[name].flatten()[0] = float('nan')
    expected = ss2d(**arguments, backend='reference').isnan()
    assert expected.any()
    assert torch.equal(ss2d(**arguments, backend='cpu').isnan(), expected)


def test_float64_is_left_to_torch():
    arguments = ss2d_inputs(1, 3, 4, 8, dtype=torch.float64)
    assert ss2d(**arguments).dtype == torch.float64
    with pytest.raises(BackendUnavailableError, match='computes in float32 and these tensors are float64'):
        ss2d(**arguments, backend='cpu')


def test_without_numba_auto_takes_torch_and_says_why(monkeypatch, caplog):
    real = importlib.util.find_spec
    monkeypatch.delenv('MMVMAMBA_BACKEND', raising=False)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name == 'numba' else real(name, *a))
    dispatch.forget()
    try:
        with caplog.at_level('INFO', logger='mmvmamba.kernels'):
            assert dispatch.choose('ss2d', 'auto', 'cpu') == 'torch'
    finally:
        dispatch.forget()
    assert [r.getMessage() for r in caplog.records] == [
        'ss2d on cpu: using the torch backend (not cpu: the package numba is not installed (pip install numba))'
    ]


def test_nothing_is_imported_before_it_is_needed(monkeypatch):
    real = builtins.__import__

    def forbidding(name, *arguments):
        assert not name.startswith('numba'), 'the torch backend imported numba'
        return real(name, *arguments)

    monkeypatch.setattr(builtins, '__import__', forbidding)
    ss2d(**ss2d_inputs(1, 3, 4, 8), backend='torch')


@pytest.mark.parametrize('scale', [1e-3, 1.0, 30.0])
def test_large_and_tiny_time_steps(scale):
    """Softplus over its whole range, relative to itself: the error by norm must not hide behind large values."""
    arguments = ss2d_inputs(1, 4, 5, 32)
    arguments['dt_projs_bias'] = arguments['dt_projs_bias'] * scale * 4 - 8 * scale
    expected = ss2d(**arguments, backend='reference')
    assert relative_error(ss2d(**arguments, backend='cpu'), expected) < 1e-5


def test_absent_gradients_do_not_alias():
    from mmvmamba.kernels.selective_scan import cpu

    arguments = dict(scan_inputs(), Ds=None, delta_bias=None)
    *_, dD, dbias = cpu.backward(torch.ones_like(arguments['u']), *arguments.values(), True)
    assert dD.numel() == dbias.numel() == 0
    assert dD is not dbias


def test_another_sequence_of_the_batch_is_not_touched_by_what_is_not_a_number():
    """Neither through the outputs nor through the lanes that fill a block of channels up."""
    arguments = ss2d_inputs(3, 5, 7, 20)
    arguments['x'][1] = float('nan')
    y, gradients = output_and_gradients(ss2d, arguments, backend='cpu')
    assert y[[0, 2]].isfinite().all()
    assert gradients['x'][[0, 2]].isfinite().all()


def test_a_sequence_longer_than_a_tile_by_one():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    for length in (1, 15, 16, 17, 33):
        arguments = (normal(2, 6, length), normal(2, 6, length), -normal(6, 3).exp(), normal(2, 3, 3, length))
        arguments += (normal(2, 3, 3, length),)
        expected = selective_scan(*arguments, backend='reference')
        assert_close(f'L={length}', selective_scan(*arguments, backend='cpu'), expected, 1e-5)
