"""Kernels that prove themselves before `auto` takes them, and kernels broken on purpose that do not.

In Triton's interpreter (see `tests/interpreter.py`), in an emulated GPU (see `.ci/run`), or on a GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton_runs import DEVICE, INTERPRETED, MARKS, OLDEST_TRITON, TOLERANCES

pytest.importorskip('triton', minversion=OLDEST_TRITON)

import triton
import triton.language as tl
from mmvmamba.kernels import (
    depthwise_conv_silu,
    dispatch,
    registration,
    ss2d,
    ss2d_norm,
    verify,
)
from mmvmamba.kernels.depthwise_conv import triton_conv
from mmvmamba.kernels.shared_triton import launch, scan
from mmvmamba.kernels.testing import (
    assert_close,
    output_and_gradients,
    pooled_scan_by_name,
    pooled_scan_inputs,
    ss2d_inputs,
)
from mmvmamba.kernels.verify import probe, verdicts
from mmvmamba.kernels.verify.verdicts import Verdict

pytestmark = MARKS


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch, tmp_path):
    """No verdict is known, and checks run in this process: where kernels are broken, another would have whole ones."""
    monkeypatch.setattr(verdicts, 'default_folder', lambda: tmp_path / 'verdicts')
    monkeypatch.setattr(verify, 'run_check', probe.check)
    monkeypatch.setenv('MMVMAMBA_VERIFY', 'first')
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    if INTERPRETED:  # which is slow: walks are cut into pieces of one tile, inputs have a few
        monkeypatch.setattr(scan, 'PROGRAMS_PER_MULTIPROCESSOR', 16)
        monkeypatch.setattr(scan, 'SHORTEST_CHUNK', 16)
        monkeypatch.setattr(probe, 'GRIDS', ((3, 5), (3, 7), (17, 2)))
    caches = (dispatch, registration, launch, verify)
    for module in caches:
        module.forget()
    yield
    for module in caches:
        module.forget()


def conv_inputs(height=4, width=6, dtype=torch.float32):
    return dict(
        x=torch.randn(1, height, width, 8).to(DEVICE, dtype),
        weight=(torch.randn(8, 1, 3, 3) / 3).to(DEVICE),
        bias=torch.randn(8).to(DEVICE),
    )


def scan_grid(height, width):
    return ss2d_inputs(batch=1, height=height, width=width, channels=8, device=DEVICE)


def run_auto(function, arguments):
    """Result and gradients of `auto`, which must be right whatever runs; by which passes' verdicts passed."""
    tolerance = TOLERANCES[next(iter(arguments.values())).dtype]
    y, grads = output_and_gradients(function, arguments, backend='auto')
    expected, expected_grads = output_and_gradients(
        function, {k: v.double() for k, v in arguments.items()}, backend='reference'
    )
    assert_close('y', y, expected, tolerance)
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], 2 * tolerance)
    return y, grads


def kept():
    """Verdicts on disk by operator and pass: whether each variant passed."""
    found = {}
    for entry in verify.store_of(torch.device(DEVICE)).entries().values():
        found.setdefault((entry['operator'], entry['direction']), []).append(entry['passed'])
    return found


def whole_kernels_run(function, arguments, taken):
    """Whether `auto` gives the bits of `triton` in the passes whose verdict passed."""
    return torch.equal(taken[0], function(**arguments, backend='triton'))


def again(kernel):
    """The kernel anew: it finds the helpers that its module has by now."""
    free = [p.name for p in kernel.params if p.do_not_specialize] if hasattr(kernel, 'params') else None
    return triton.jit(kernel.fn, do_not_specialize=free)


def test_auto_verifies_keeps_and_takes_triton(monkeypatch):
    arguments = conv_inputs()
    taken = run_auto(depthwise_conv_silu, arguments)
    assert kept() == {('depthwise_conv_silu', 'forward'): [True], ('depthwise_conv_silu', 'backward'): [True]}
    expected = output_and_gradients(depthwise_conv_silu, arguments, backend='triton')
    assert torch.equal(taken[0], expected[0])
    assert all(torch.equal(taken[1][name], expected[1][name]) for name in arguments)

    def never(call, plan):
        raise AssertionError('checked again')

    monkeypatch.setattr(verify, 'run_check', never)
    registration.forget()
    run_auto(depthwise_conv_silu, conv_inputs(9, 5))  # another size, the same variant
    verify.forget()
    run_auto(depthwise_conv_silu, arguments)  # as another process, which reads
    with pytest.raises(AssertionError, match='checked again'):
        depthwise_conv_silu(**conv_inputs(dtype=torch.bfloat16), backend='auto')  # another variant


def test_inner_planes_are_verified(monkeypatch):
    """Forward alone, whose kernels are others than without planes."""
    monkeypatch.setattr(probe, 'GRIDS', ((1, 3),))
    arguments = pooled_scan_inputs(1, 1, 2, 4, planes=(2,), device=DEVICE)
    with torch.no_grad():
        pooled_scan_by_name(**arguments, backend='auto')
    assert kept() == {('pooled_scan_planes', 'forward'): [True]}


ONE_PASS, CHUNKED = ((3, 4), (3, 6)) if INTERPRETED else ((17, 3), (17, 9))


@triton.jit(do_not_specialize=['chunks'])
def _forgetful_passing(
    p_A, p_sums, p_states, chunks, K: tl.constexpr, D: tl.constexpr, N: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Hands on nothing: wrong in chunks alone."""
    BLOCKS: tl.constexpr = (D + BD - 1) // BD
    i_d = tl.program_id(0) % BLOCKS
    i_k = tl.program_id(0) // BLOCKS // N % K
    i_n = tl.program_id(0) // BLOCKS % N
    i_b = tl.program_id(0) // BLOCKS // N // K
    o_d = i_d * BD + tl.arange(0, BD)
    for i_c in range(chunks):
        p_state = p_states + (((i_b * chunks + i_c) * K + i_k) * N + i_n) * D + o_d
        tl.store(p_state, tl.zeros((BD,), tl.float32), mask=o_d < D)


def test_wrong_arithmetic_in_chunks_alone(monkeypatch, caplog):
    monkeypatch.setattr(scan, 'state_passing', _forgetful_passing)
    with torch.no_grad():
        for height, width in ONE_PASS, CHUNKED:
            arguments = scan_grid(height, width)
            y = ss2d(**arguments, backend='auto')
            expected = ss2d(**{k: v.double() for k, v in arguments.items()}, backend='reference')
            assert_close('y', y, expected, TOLERANCES[torch.float32])
    assert kept() == {('ss2d', 'forward'): [True, False]}
    assert caplog.text.count('failed their check on this GPU') == 1
    assert 'ss2d forward (float32, 8 channels' in caplog.text
    assert 'y: relative error' in caplog.text


@triton.jit
def _ragged_nan(p_y, t0, end, rows, m_d, D: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, VECTOR: tl.constexpr):
    o_t = tl.arange(0, U)
    o_d = tl.arange(0, BD)
    for t in tl.static_range(U):
        value = tl.where(t0 + U > end, float('nan'), rows[t])
        value = tl.reshape(value, (1, BD)).to(p_y.dtype.element_ty)
        offset = (tl.zeros((1,), tl.int32) + t0 + t)[:, None] * D
        mask = ((tl.zeros((1,), tl.int32) + t0 + t) < end)[:, None] & m_d[None, :]
        tl.store(p_y[None, :] + offset, value, mask=mask)
    o_t += 0
    o_d += 0


def test_nan_in_ragged_tiles_alone(monkeypatch, caplog):
    """Noticed though the call itself has none of them: its image is a whole number of tiles."""
    monkeypatch.setattr(triton_conv, '_write_rows', _ragged_nan)
    monkeypatch.setattr(triton_conv, '_conv_silu_fwd', again(triton_conv._conv_silu_fwd))
    with torch.no_grad():
        arguments = conv_inputs(8, 8)
        assert depthwise_conv_silu(**arguments, backend='triton').isfinite().all()
        y = depthwise_conv_silu(**arguments, backend='auto')
        expected = depthwise_conv_silu(**{k: v.double() for k, v in arguments.items()}, backend='reference')
        assert_close('y', y, expected, TOLERANCES[torch.float32])
    assert kept() == {('depthwise_conv_silu', 'forward'): [False]}
    assert 'values are not finite' in caplog.text


@triton.jit
def _no_slope(x):
    return x * 0.0


def test_a_gradient_of_zero(monkeypatch, caplog):
    monkeypatch.setattr(triton_conv, 'silu_slope', _no_slope)
    monkeypatch.setattr(triton_conv, '_conv_silu_bwd', again(triton_conv._conv_silu_bwd))
    run_auto(depthwise_conv_silu, conv_inputs())
    assert kept() == {('depthwise_conv_silu', 'forward'): [True], ('depthwise_conv_silu', 'backward'): [False]}
    assert 'dweight: relative error 1, limit' in caplog.text


@triton.jit
def _no_program(x):
    tl.static_assert(False, 'cannot be compiled')
    return x


def test_an_exception(monkeypatch, caplog):
    monkeypatch.setattr(triton_conv, 'silu_slope', _no_program)
    monkeypatch.setattr(triton_conv, '_conv_silu_bwd', again(triton_conv._conv_silu_bwd))
    run_auto(depthwise_conv_silu, conv_inputs())
    assert kept() == {('depthwise_conv_silu', 'forward'): [True], ('depthwise_conv_silu', 'backward'): [False]}
    assert 'depthwise_conv_silu backward' in caplog.text
    assert 'cannot be compiled' in caplog.text


def test_what_was_not_asked_for_is_not_proved():
    call = probe.Call.of('depthwise_conv_silu', 'forward', tuple(conv_inputs().values()))
    verdict = probe.check(call, [['elsewhere', '_conv_silu_fwd', ['*float32'], [], []]])
    assert not verdict.passed
    assert 'none of the small inputs launches' in verdict.reason


def test_a_size_that_the_kernels_refuse_takes_the_other_backend(monkeypatch, caplog):
    def refuse(x):
        raise ValueError('H*W*D must stay below 2**31')

    monkeypatch.setattr(triton_conv, '_check_size', refuse)
    run_auto(depthwise_conv_silu, conv_inputs())
    assert 'the torch backend runs, as the Triton kernels cannot be asked: ValueError: H*W*D must' in caplog.text
    assert kept() == {}


def test_off_trusts(monkeypatch):
    monkeypatch.setenv('MMVMAMBA_VERIFY', 'off')
    monkeypatch.setattr(verify, 'run_check', None)
    run_auto(depthwise_conv_silu, conv_inputs())
    assert kept() == {}


def test_a_capture_asks_to_run_once_before(monkeypatch):
    arguments = conv_inputs()
    monkeypatch.setattr(verify, '_is_capturing', lambda tensor: True)
    with pytest.raises(RuntimeError, match='a check cannot run while a CUDA graph is captured; run the same call once'):
        depthwise_conv_silu(**arguments, backend='auto')
    monkeypatch.setattr(verify, '_is_capturing', lambda tensor: False)
    with torch.no_grad():
        expected = depthwise_conv_silu(**arguments, backend='auto')
        monkeypatch.setattr(verify, '_is_capturing', lambda tensor: True)
        assert torch.equal(depthwise_conv_silu(**arguments, backend='auto'), expected)


def block(x, weight, bias, **scan):
    return ss2d_norm(depthwise_conv_silu(x, weight, bias), **scan)


def block_inputs():
    arguments = conv_inputs(3, 5)
    scan = ss2d_inputs(batch=1, height=3, width=5, channels=8, device=DEVICE)
    del scan['x']
    return dict(arguments, **scan, norm_weight=torch.ones(8, device=DEVICE), norm_bias=torch.zeros(8, device=DEVICE))


def in_inference_mode(arguments):
    with torch.inference_mode():
        return block(**arguments), {}


def without_gradients(arguments):
    with torch.no_grad():
        return block(**arguments), {}


def in_a_checkpoint(arguments):
    def run(**leaves):
        return torch.utils.checkpoint.checkpoint(lambda: block(**leaves), use_reentrant=False)

    return output_and_gradients(run, arguments)


def compiled(arguments):
    torch._dynamo.reset()
    return output_and_gradients(torch.compile(block, fullgraph=True, backend='aot_eager'), arguments)


def in_ddp(arguments):
    """A world of one: the first backward pass runs in the reducer's hooks."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in arguments.items():
                if name != 'x':
                    self.register_parameter(name, torch.nn.Parameter(value.clone()))

        def forward(self, x):
            return block(x, **dict(self.named_parameters()))

    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        net = torch.nn.parallel.DistributedDataParallel(Net())

        def run(x):
            return net(x)

        y, grads = output_and_gradients(run, dict(x=arguments['x']))
        return y, grads
    finally:
        torch.distributed.destroy_process_group()


ROADS = dict(
    inference_mode=in_inference_mode,
    no_grad=without_gradients,
    checkpoint=in_a_checkpoint,
    compiled=compiled,
    ddp=in_ddp,
    eager=lambda arguments: output_and_gradients(block, arguments),
)


@pytest.mark.parametrize('passed', [True, False], ids=['verified', 'failed'])
@pytest.mark.parametrize('road', ROADS)
def test_every_road_works_on_its_first_call(road, passed, monkeypatch):
    """Whatever the verdict is; no kernel is checked here."""
    checks = []

    def judge(call, plan):
        checks.append((call.operator, call.direction))
        return Verdict(passed, '' if passed else 'on purpose')

    monkeypatch.setattr(verify, 'run_check', judge)
    arguments = block_inputs()
    y, grads = ROADS[road](arguments)
    forward = {('depthwise_conv_silu', 'forward'), ('ss2d_norm', 'forward')}
    assert set(checks) == forward | ({(operator, 'backward') for operator, _ in forward} if grads else set())
    assert len(checks) == len(set(checks))
    exact = {k: v.double() for k, v in arguments.items()}
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, 'reference')
    expected, expected_grads = output_and_gradients(block, exact)
    assert_close('y', y, expected, TOLERANCES[torch.float32])
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], 2 * TOLERANCES[torch.float32])


@pytest.mark.parametrize('passed', [True, False], ids=['verified', 'failed'])
def test_autocast_works_on_its_first_call(passed, monkeypatch):
    monkeypatch.setattr(verify, 'run_check', lambda call, plan: Verdict(passed))
    arguments = block_inputs()
    with torch.autocast(torch.device(DEVICE).type, torch.bfloat16):
        y, _ = output_and_gradients(block, arguments)
    assert y.dtype == torch.bfloat16
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, 'reference')
    expected = block(**{k: v.double() for k, v in arguments.items()})
    assert_close('y', y, expected, 2 * TOLERANCES[torch.bfloat16])


USE = """
import torch
from mmvmamba.kernels import depthwise_conv_silu, verify
depthwise_conv_silu(torch.randn(1, 2, 3, 8, device=DEVICE), torch.randn(8, 1, 1, 1, device=DEVICE), backend='auto')
for entry in verify.store_of(torch.device(DEVICE)).entries().values():
    print(entry['passed'], entry['time'], entry['reason'])
"""


EMULATED = 'ptxsim' in sys.modules


def test_a_second_process_reads_the_verdict(tmp_path):
    """The first one has it from a process of its own: nothing here is replaced."""
    command = [sys.executable, '-c', f'DEVICE = {DEVICE!r}\n{USE}']
    if EMULATED:
        command = [sys.executable, str(Path(__file__).parents[1] / 'emulated_runs.py'), str(tmp_path), 'user']
    environment = dict(os.environ, TRITON_CACHE_DIR=str(tmp_path), OMP_NUM_THREADS='1')
    found = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout for _ in range(2)
    ]
    assert found[0] == found[1]  # with the time of the check
    assert found[0].startswith('True')
    (file,) = tmp_path.glob('mmvmamba-verdicts/*.json')
    assert json.loads(file.read_text())['machine']['gpu'] == verify.store_of(torch.device(DEVICE)).machine['gpu']
