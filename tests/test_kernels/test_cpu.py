"""What the compiled CPU backend promises beyond agreeing with the reference: threads, forks, falling back."""

import builtins
import importlib.util
import subprocess
import sys

import pytest
import torch
from mmvmamba.kernels import BackendUnavailableError, dispatch, selective_scan, ss2d
from mmvmamba.kernels.testing import assert_close, output_and_gradients, relative_error, ss2d_inputs

pytestmark = pytest.mark.skipif(importlib.util.find_spec('numba') is None, reason='numba is not installed')


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize('batch, channels', [(1, 96), (3, 40)])
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


def test_torchs_thread_count_is_respected(monkeypatch):
    from mmvmamba.kernels.compiled import threads

    before = torch.get_num_threads()
    seen = []
    try:
        torch.set_num_threads(2)
        threads.run(None, lambda tasks, count: seen.append(count), (), 5)
        torch.set_num_threads(1)
        threads.run(lambda first, last: seen.append((first, last)), None, (), 5)
    finally:
        torch.set_num_threads(before)
    assert seen == [2, (0, 5)]


def test_forked_data_loader_workers():
    """The parent has used the threads already; each worker then runs the scan, as a model in a dataset would."""
    code = (
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
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_float64_is_left_to_torch():
    arguments = ss2d_inputs(1, 3, 4, 8, dtype=torch.float64)
    assert ss2d(**arguments).dtype == torch.float64
    with pytest.raises(BackendUnavailableError, match='computes in float32 and these tensors are float64'):
        ss2d(**arguments, backend='cpu')


def test_without_numba_auto_takes_torch_and_says_why(monkeypatch, caplog):
    real = importlib.util.find_spec
    monkeypatch.delenv('MMVMAMBA_BACKEND', raising=False)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name == 'numba' else real(name, *a))
    dispatch._fastest.cache_clear()
    try:
        with caplog.at_level('INFO', logger='mmvmamba.kernels'):
            assert dispatch.choose('ss2d', 'auto', 'cpu') == 'torch'
    finally:
        dispatch._fastest.cache_clear()
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


def test_a_sequence_longer_than_a_tile_by_one():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    for length in (1, 15, 16, 17, 33):
        arguments = (normal(2, 6, length), normal(2, 6, length), -normal(6, 3).exp(), normal(2, 3, 3, length))
        arguments += (normal(2, 3, 3, length),)
        expected = selective_scan(*arguments, backend='reference')
        assert_close(f'L={length}', selective_scan(*arguments, backend='cpu'), expected, 1e-5)
