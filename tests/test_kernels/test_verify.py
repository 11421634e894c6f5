"""Verdicts: kept, voided, shared among processes and ranks; what a check that dies leaves behind. No kernel runs."""

import json
import logging
import math
import multiprocessing
import random
import shutil
import sys
import threading
import time
from datetime import timedelta

import pytest
import torch
from mmvmamba.kernels import dispatch
from triton_runs import OLDEST_TRITON

pytest.importorskip('triton', minversion=OLDEST_TRITON)

from mmvmamba.kernels import Direction, pooled_scan, registration, ss2d, ss2d_norm, verify
from mmvmamba.kernels.shared_triton import launch
from mmvmamba.kernels.testing import pooled_scan_inputs, scan_inputs, ss2d_inputs
from mmvmamba.kernels.verify import probe, ranks, verdicts, worker
from mmvmamba.kernels.verify.verdicts import Store, Verdict

CPU = torch.device('cpu')
CALL = probe.Call(
    'depthwise_conv_silu', 'forward', (('float32', (1, 4, 5, 8)), ('float32', (8, 1, 3, 3)), None), (), 'cpu'
)
PLAN = [['somewhere', '_convolve', ['*float32'], [], []]]
PASSED = Verdict(True, errors={'y': [1e-7, 1e-7, 5e-5]}, seconds=1.0)


@pytest.fixture(autouse=True)
def a_machine(monkeypatch, tmp_path):
    """A GPU of which only the name exists, with a cache of its own."""
    import triton

    monkeypatch.setattr(verdicts, '_gpu', lambda device: ('NVIDIA Nothing', '9.0'))
    monkeypatch.setattr(triton.knobs.cache, 'dir', str(tmp_path / 'cache'))
    monkeypatch.delenv('MMVMAMBA_VERIFY', raising=False)
    verdicts._said.clear()
    verify.forget()
    yield
    verify.forget()


@pytest.fixture
def checks(monkeypatch):
    """How often a check ran; it passes."""
    calls = []
    monkeypatch.setattr(verify, 'run_check', lambda call, plan: calls.append(call) or PASSED)
    return calls


def test_a_verdict_is_kept(checks):
    assert verify.prove(CALL, PLAN) == PASSED
    verify.forget()  # as another process
    assert verify.prove(CALL, PLAN) == PASSED
    assert len(checks) == 1
    assert verify.prove(CALL._replace(direction='backward'), PLAN) == PASSED  # a verdict of its own
    assert len(checks) == 2


def test_always_checks_again_once_a_process(checks):
    for how in ('first', 'always', 'always'):
        verify.forget()
        verify.prove(CALL, PLAN, how)
        verify.prove(CALL, PLAN, how)
    assert len(checks) == 3


def test_a_wrong_mode_is_named(monkeypatch):
    monkeypatch.setenv('MMVMAMBA_VERIFY', 'never')
    with pytest.raises(
        ValueError, match=r"MMVMAMBA_VERIFY='never' is unknown; expected one of \['first', 'always', 'off'\]"
    ):
        dispatch.verify_mode()


def changed_byte(monkeypatch, tmp_path):
    folder = tmp_path / 'kernels'
    shutil.copytree(verdicts.SOURCES, folder, ignore=shutil.ignore_patterns('__pycache__'))
    with (folder / 'shared_triton/scan.py').open('a') as file:
        file.write('\n')
    monkeypatch.setattr(verdicts, 'SOURCES', folder)


CHANGES = {
    'a_byte_of_a_kernel': changed_byte,
    'triton': lambda monkeypatch, _: monkeypatch.setattr('triton.__version__', '9.9.9'),
    'torch': lambda monkeypatch, _: monkeypatch.setattr('torch.__version__', '9.9.9'),
    'driver': lambda monkeypatch, _: monkeypatch.setattr(verdicts, '_driver', lambda: '999.99'),
    'gpu': lambda monkeypatch, _: monkeypatch.setattr(verdicts, '_gpu', lambda device: ('NVIDIA Other', '9.0')),
    'capability': lambda monkeypatch, _: monkeypatch.setattr(
        verdicts, '_gpu', lambda device: ('NVIDIA Nothing', '9.1')
    ),
}


@pytest.mark.parametrize('change', CHANGES)
def test_a_changed_machine_voids_verdicts(change, checks, monkeypatch, tmp_path):
    verify.prove(CALL, PLAN)
    verify.forget()
    CHANGES[change](monkeypatch, tmp_path)
    verify.prove(CALL, PLAN)
    assert len(checks) == 2


@pytest.mark.parametrize(
    'content',
    [
        '',
        '{',
        '[]',
        'null',
        '{"verdicts": 3}',
        '{"verdicts": {"a": {}}}',
        '{"verdicts": {"a": {"passed": 1}}}',
        '\0\xff',
    ],
    ids=range(8),
)
def test_a_damaged_file_is_a_check_again_with_a_warning(content, checks, caplog):
    verify.prove(CALL, PLAN)
    path = verify.store_of(CPU).path
    path.write_bytes(content.encode('latin-1'))
    verify.forget()
    assert verify.prove(CALL, PLAN) == PASSED
    assert caplog.text.count('kernels prove themselves again') == 1
    verify.forget()
    assert verify.prove(CALL, PLAN) == PASSED  # the file is whole again
    assert len(checks) == 2


def test_a_half_written_file(checks, caplog):
    verify.prove(CALL, PLAN)
    path = verify.store_of(CPU).path
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        assert Store(CPU).read('anything') is None
    assert 'cannot be read' in caplog.text


def test_an_unwritable_cache_is_checked_again(checks, caplog, monkeypatch, tmp_path):
    import triton

    (tmp_path / 'file').write_text('')
    monkeypatch.setattr(
        triton.knobs.cache, 'dir', str(tmp_path / 'file')
    )  # root may write anywhere, but not below a file
    for _ in range(2):
        verify.forget()
        assert verify.prove(CALL, PLAN) == PASSED
    assert len(checks) == 2
    assert 'cannot be written' in caplog.text


def test_writing_leaves_nothing_behind(checks):
    verify.prove(CALL, PLAN)
    path = verify.store_of(CPU).path
    assert {p.suffix for p in path.parent.iterdir()} == {'.json', '.lock'}
    assert json.loads(path.read_text())['machine']['gpu'] == 'NVIDIA Nothing'


def test_threads_wait_for_one_check(monkeypatch):
    calls = []

    def slow(call, plan):
        calls.append(call)
        time.sleep(0.05)
        return PASSED

    monkeypatch.setattr(verify, 'run_check', slow)
    found = []
    threads = [threading.Thread(target=lambda: found.append(verify.prove(CALL, PLAN))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [PASSED] * 8
    assert len(calls) == 1


def _prove_with_others(folder, barrier, results):
    import triton

    triton.knobs.cache.dir = str(folder)
    verdicts._gpu = lambda device: ('NVIDIA Nothing', '9.0')
    calls = []

    def slow(call, plan):
        calls.append(call)
        time.sleep(0.2)
        return PASSED

    verify.run_check = slow
    barrier.wait()
    passed = [verify.prove(CALL._replace(direction=way), PLAN).passed for way in ('forward', 'backward')]
    results.put((len(calls), passed))


@pytest.fixture(scope='module')
def processes():
    return multiprocessing.get_context('fork' if sys.platform == 'linux' else 'spawn')


def test_processes_that_start_together_do_one_check_each_at_most(processes, tmp_path):
    barrier, results = processes.Barrier(2), processes.Queue()
    running = [processes.Process(target=_prove_with_others, args=(tmp_path, barrier, results)) for _ in range(2)]
    for process in running:
        process.start()
    found = [results.get(timeout=60) for _ in running]
    for process in running:
        process.join()
    assert all(passed == [True, True] for _, passed in found)
    assert sum(calls for calls, _ in found) == 2  # of two variants


def test_a_failure_is_said_once_with_its_numbers(monkeypatch, caplog):
    failed = Verdict(False, 'y: relative error 0.3, limit 5e-05 (torch: 1e-07)')
    monkeypatch.setattr(verify, 'run_check', lambda call, plan: failed)
    for _ in range(3):
        assert not verify.prove(CALL, PLAN).passed
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert 'depthwise_conv_silu forward' in warnings[0]
    assert 'relative error 0.3, limit 5e-05' in warnings[0]


# --- the other process ------------------------------------------------------------------------------------------------
ANSWERS = """
import json, signal, sys, time, os
from mmvmamba.kernels.verify import probe, worker
from mmvmamba.kernels.verify.verdicts import Verdict
from mmvmamba.kernels.verify import verdicts
verdicts._gpu = lambda device: {gpu}
worker.IDLE = {idle}
print('a greeting')
def check(call, plan):
    {check}
probe.check = check
worker.serve()
"""


@pytest.fixture
def worker_that(monkeypatch):
    """A worker whose check is the given statement."""
    made = []

    def make(check, gpu=('NVIDIA Nothing', '9.0'), idle=30.0):
        monkeypatch.setattr(worker, 'command', [sys.executable, '-c', ANSWERS.format(check=check, gpu=gpu, idle=idle)])
        made.append(worker.Worker())
        return made[-1]

    yield make
    for each in made:
        each.close()


CONDUCT = """
    does = call.options[0]
    print('noise that is no answer')
    if does == 'crashes': os.abort()
    if does == 'hangs': time.sleep(60)
    if does in ('SIGINT', 'SIGKILL'): os.kill(os.getpid(), getattr(signal, does))
    return Verdict(does == 'passes', str(os.getpid()))
"""


def test_whatever_a_check_does_the_next_one_runs(worker_that):
    own = worker_that(CONDUCT)

    def check(does, timeout=None):
        return own.check(CALL._replace(options=(does,)), PLAN, timeout)

    first, second = check('passes'), check('passes')
    assert first.passed
    assert first == second  # of one process
    crashed = check('crashes')
    assert (crashed.passed, crashed.kept) == (False, True)
    assert 'ended with code -6' in crashed.reason
    failed, after = check('fails'), check('passes')
    assert (failed.passed, after.passed) == (False, True)
    assert failed.reason != after.reason  # the device may be in any state: a new process
    hung = check('hangs', timeout=0.2)
    assert (hung.passed, hung.kept) == (False, True)
    assert 'no answer within 0.2 s' in hung.reason


def test_what_others_end_is_no_verdict_on_kernels(worker_that, monkeypatch):
    own = worker_that(CONDUCT)

    def check(does):
        return own.check(CALL._replace(options=(does,)), PLAN)

    assert check('SIGINT').reason.isdecimal()  # Ctrl-C reaches all processes of a terminal: this one goes on

    def interrupted(timeout):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(own, '_wait', interrupted)
        with pytest.raises(KeyboardInterrupt):
            check('passes')
    killed = check('SIGKILL')  # has not the other one's answer
    assert (killed.passed, killed.kept) == (False, False)
    assert 'ended with code -9' in killed.reason


def test_the_other_process_finds_the_same_package(monkeypatch, tmp_path):
    """Though the current folder has one of its name, as a checkout has beside an installed wheel."""
    (tmp_path / 'mmvmamba').mkdir()
    (tmp_path / 'mmvmamba/__init__.py').write_text('')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    own = worker.Worker()
    reason = own.check(CALL, PLAN).reason  # it has started
    own.close()
    assert reason.startswith(
        ('the process that checks kernels cannot use cpu', 'the process that checks kernels finds')
    )


def test_a_device_that_cannot_be_used_is_no_verdict(worker_that):
    verdict = worker_that('return Verdict(True)', gpu='1 / 0').check(CALL, PLAN)
    assert (verdict.passed, verdict.kept) == (False, False)
    assert 'cannot use cpu: ZeroDivisionError' in verdict.reason


@pytest.mark.parametrize(
    'error',
    [torch.cuda.OutOfMemoryError('CUDA out of memory. Tried'), RuntimeError('Triton Error [CUDA]: out of memory')],
)
def test_no_memory_is_no_verdict(error, monkeypatch, caplog):
    def fail(call, plan):
        raise error

    monkeypatch.setattr(probe, 'same_variants', fail)
    monkeypatch.setattr(verify, 'run_check', probe.check)
    assert not verify.prove(CALL, PLAN).passed
    assert 'could not prove themselves in this process' in caplog.text
    assert 'no memory for its check' in caplog.text
    assert not verify.store_of(CPU).path.exists()


def test_nothing_begins_after_an_interruption(monkeypatch):
    begun = []

    def check(call, plan):
        begun.append(call)
        time.sleep(0.02)
        return PASSED

    monkeypatch.setattr(verify, 'run_check', check)
    found = verify.prove_all({str(i): (CALL, PLAN) for i in range(40)})
    next(found)
    found.close()
    assert len(begun) < 10


def test_an_idle_process_gives_its_memory_back(worker_that):
    own = worker_that('return Verdict(True)', idle=0.0)
    assert own.check(CALL, PLAN).passed
    own._process.wait(20)
    assert own.check(CALL, PLAN).passed


@pytest.mark.parametrize('command', [['/nonexistent'], [sys.executable, '-c', 'raise SystemExit("no device")']])
def test_a_process_that_cannot_start_is_no_verdict_on_kernels(command, monkeypatch):
    monkeypatch.setattr(worker, 'command', command)
    monkeypatch.setattr(verify, 'run_check', worker.Worker().check)
    verdict = verify.prove(CALL, PLAN)
    assert not verdict.passed
    assert 'does not run' in verdict.reason
    assert not verify.store_of(CPU).path.exists()


def test_a_process_on_another_gpu_is_no_verdict(worker_that):
    verdict = worker_that('return Verdict(True)', gpu=('NVIDIA Other', '8.0')).check(CALL, PLAN)
    assert not verdict.passed
    assert not verdict.kept
    assert 'NVIDIA Other' in verdict.reason


# --- ranks ------------------------------------------------------------------------------------------------------------
def _rank(rank, address, own, queue):
    torch.distributed.init_process_group('gloo', init_method=address, rank=rank, world_size=2)
    calls = []

    def decide():
        calls.append(rank)
        time.sleep(0.1)
        return Verdict(own[rank], f'of rank {rank}')

    machine = ('one', 'one') if own[0] is not None else ('one', 'other')
    verdict = ranks.agreed(machine[rank], 'variant', decide, 30)
    alone = ranks.agreed('one', f'only on rank {rank}', lambda: Verdict(True), 30)  # nobody waits for the other
    queue.put((rank, verdict.passed, len(calls), alone.passed))
    torch.distributed.barrier()


@pytest.mark.parametrize('own', [(True, False), (False, True)], ids=str)
def test_ranks_agree_on_the_first_ones_verdict(own, processes, tmp_path):
    queue = processes.Queue()
    address = f'file://{tmp_path}/store'
    running = [processes.Process(target=_rank, args=(rank, address, own, queue)) for rank in range(2)]
    for process in running:
        process.start()
    found = [queue.get(timeout=60) for _ in running]
    for process in running:
        process.join(60)
    assert len({passed for _, passed, _, _ in found}) == 1
    assert sum(calls for _, _, calls, _ in found) == 1
    assert all(alone for *_, alone in found)


def test_a_rank_that_never_answers_is_not_waited_for_long(monkeypatch):
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=1))
    monkeypatch.setattr(ranks, '_store', lambda: store)
    store.add('one/variant/asked', 1)
    assert ranks.agreed('one', 'variant', lambda: PASSED, 0.2) == PASSED
    store.add('failed/variant', 1)  # by a rank on another kind of machine
    assert not ranks.agreed('other', 'variant', lambda: PASSED, 0.2).passed


# --- which variant a call launches ------------------------------------------------------------------------------------
@pytest.fixture
def able(monkeypatch):
    """Triton could run here, as far as nothing is launched, on a machine of 132 multiprocessors."""
    from mmvmamba.kernels.shared_triton import numerics, scan

    monkeypatch.setattr(dispatch, '_why_not', lambda backend, device_type, dtype: None)
    for module in (scan, numerics):
        monkeypatch.setattr(module, 'multiprocessors', lambda device: 132)


def calls(operator, size, dtype):
    """Both passes of an operator on a grid of some size."""
    batch, height, width = size
    if operator == 'selective_scan':
        inputs = scan_inputs(batch, 2, 4, length=height * width, dtype=dtype)
    elif operator.startswith('pooled_scan'):
        planes = (3,) if operator == 'pooled_scan_planes' else ()
        inputs = pooled_scan_inputs(batch, height, width, channels=16, dtype=dtype, planes=planes)
    elif operator == 'depthwise_conv_silu':
        inputs = dict(x=torch.empty(*size, 8, dtype=dtype), weight=torch.empty(8, 1, 3, 3), bias=None)
    else:
        inputs = ss2d_inputs(batch, height, width, channels=96, dtype=dtype)
    tensors = tuple(inputs.values())
    if operator == 'ss2d_norm':
        tensors += (torch.empty(96), torch.empty(96), torch.empty(*size, 96, dtype=dtype))
    options = dict(
        selective_scan=[(True,)],
        ss2d=[('cross',), ('bidi',)],
        ss2d_norm=[(1e-5, 'cross', True)],
        pooled_scan=[('row', 'mean', 1.0, 1e-5), ('column', 'max', 1.0, 1e-5), ('column', None, 1.0, 1e-5)],
        pooled_scan_planes=[
            ('row', 'mean', 1.0, 1e-5, 'inner'),
            ('column', 'max', 1.0, 1e-5, 'outer'),
            ('column', None, 1.0, 1e-5, 'inner'),
        ],
        depthwise_conv_silu=[()],
    )[operator]
    forward = [probe.Call.of(operator, 'forward', (*tensors, *each)) for each in options]
    return [call._replace(direction=way) for call in forward for way in ('forward', 'backward')]


def test_every_operator_with_kernels_can_be_verified():
    """One that `probe.LAYOUTS` lacks would fail at its first call on a GPU."""
    with_kernels = {name for name, op in registration.operators.items() if 'triton' in op._implementations._modules}
    assert with_kernels == set(probe.LAYOUTS)


@pytest.mark.parametrize('operator', probe.LAYOUTS)
def test_equal_facts_are_equal_variants(operator, able):
    """What tells calls apart in microseconds may not overlook what is compiled in."""
    from mmvmamba.kernels.verify.facts import facts

    sizes = random.Random(0)
    grids = [(1, 3, 5), (40, 3, 5), (0, 3, 5), (1, 90, 5), (1, 5, 90), (1, 16, 8), (30, 20, 20)]
    grids += [(sizes.randint(1, 3), sizes.randint(1, 40), sizes.randint(1, 40)) for _ in range(12)]
    plans = {}
    for size in grids:
        for dtype in (torch.float32, torch.bfloat16):
            for call in calls(operator, size, dtype):
                arguments = probe.empty_arguments(call)
                plan = probe.plan_of_call(call)
                key = facts(operator, call.direction, arguments)
                assert plans.setdefault(key, plan) == plan, (call, key)
    variants = {str(plan) for plan in plans.values()}
    assert len(variants) >= 4
    assert len(plans) < 40 * len(variants)  # and do not tell everything apart


def test_planes_have_verdicts_of_their_own(able):
    """No planes, inner ones, so many inner ones that tiles are others, and outer ones."""
    keys = set()
    for planes in ((), (3, 'inner'), (4, 'inner'), (9, 'inner'), (20, 'inner'), (3, 'outer'), (9, 'outer')):
        arguments = pooled_scan_inputs(1, 3, 40, channels=16, planes=planes[:1])
        tensors = (*arguments.values(), 'row', 'mean', 1.0, 1e-5, *planes[1:])
        call = probe.Call.of(f'pooled_scan{"_planes" if planes else ""}', 'forward', tensors)
        keys.add(verify.key_of(call, probe.plan_of_call(call)))
    assert len(keys) == 4


@pytest.mark.parametrize('operator', probe.LAYOUTS)
def test_a_small_input_launches_what_a_large_one_does(operator, able):
    for size in ((1, 7, 7), (1, 56, 56), (2, 25, 40), (4, 40, 14)):
        for call in calls(operator, size, torch.bfloat16):
            plan = probe.plan_of_call(call)
            found = probe.same_variants(call, plan)
            assert len(found) == 2, (call, plan)
            assert all(math.prod(small.tensors[0][1][:3]) <= 2 * 70 * 17 * 32 for small in found)


@pytest.mark.parametrize('operator', probe.LAYOUTS)
def test_what_stands_in_for_the_reference_on_the_longest_grids(operator, monkeypatch):
    for call in calls(operator, (1, 3, 5), torch.float32):
        tensors = call.inputs()
        with torch.no_grad():
            cotangent, _ = probe._arguments(call, tensors)
            expected = probe._exact(call, cotangent, tensors)
            monkeypatch.setattr(probe, '_LONGEST', 0)
            for actual, right in zip(probe._exact(call, cotangent, tensors), expected, strict=True):
                assert probe.relative_error(actual, right) < 1e-12
            monkeypatch.undo()


def test_wide_images_are_told_from_tall_ones(able):
    """Where only one of them needs another division: too large to be run here."""
    from mmvmamba.kernels.verify.facts import facts

    inputs = [torch.empty(t.shape, device='meta') for t in ss2d_inputs(1, 1, 1, channels=96).values()][1:]
    found = {facts('ss2d', 'forward', (torch.empty(1, *grid, 96, device='meta'), *inputs, 'cross')) for grid in TURNED}
    assert len(found) == 2


TURNED = ((2048, 256), (256, 2048))


def test_what_is_proved_is_what_runs_under_autocast(able, monkeypatch):
    plans = []
    monkeypatch.setattr(verify, 'run_check', lambda call, plan: plans.append(plan) or PASSED)
    registration.forget()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16), launch.recording() as launches:
        ss2d(**ss2d_inputs(1, 3, 5), backend='auto')
    registration.forget()
    assert plans == [probe.plan_of(launches)]


def test_a_whole_number_is_not_compiled_in(able):
    norm = dict(norm_weight=torch.ones(8), norm_bias=torch.zeros(8))
    with torch.no_grad(), launch.recording() as launches:
        ss2d_norm(**ss2d_inputs(1, 3, 5), **norm, eps=1, backend='triton')
    assert launches[-1].types[-1] == 'fp32'


def test_plans_know_every_dtype(able):
    from mmvmamba.kernels.pooled_scan import triton_scan
    from mmvmamba.kernels.pooled_scan.op import _structured

    inputs = pooled_scan_inputs(1, 3, 5, dtype=torch.bfloat16)
    plans = set()
    for dtype in (torch.float32, torch.bfloat16):
        inputs['norm_bias'] = inputs['norm_bias'].to(dtype)
        xz, (forth, back), *norm = _structured(tuple(inputs.values()))
        with torch.no_grad(), launch.recording():
            pooled_scan(xz, Direction(*forth), Direction(*back), *norm, backend='triton')
        xz, forth, back, norm = triton_scan._dense(xz, (forth, back), *norm)
        plans.add(triton_scan._case(xz, forth, back, norm, 'row', 'mean', None))
    assert len(plans) == 2


def test_what_a_kernel_leaves_out_is_noticed(able, monkeypatch):
    class Lazy:
        forward = staticmethod(lambda x, weight, bias: torch.empty_like(x))

    monkeypatch.setitem(registration.operators['depthwise_conv_silu']._loaded, 'triton', Lazy)
    with torch.no_grad():
        faults, _ = probe._compare(CALL, [])
    assert faults == ['y: 160 of 160 values are not finite']


def test_a_gradient_of_zero_and_a_wrong_row_are_noticed():
    """The canary of every check: what is compared is told apart from nothing."""
    expected = torch.randn(500, 8, dtype=torch.float64)
    torch_own = expected + 1e-7 * torch.randn_like(expected)
    assert probe._judge('dx', torch_own.float(), torch_own, expected, 5e-5)[0] == ''
    assert 'relative error 1, limit' in probe._judge('dx', torch.zeros_like(expected), torch_own, expected, 5e-5)[0]
    wrong = torch_own.clone()
    wrong[7] *= 1.01
    assert 'relative error' in probe._judge('dx', wrong, torch_own, expected, 5e-5)[0]
    missing = torch_own.clone()
    missing[499, 7] = float('nan')
    assert '1 of 4000 values are not finite' in probe._judge('dx', missing, torch_own, expected, 5e-5)[0]
    poor = expected + 0.5 * torch.randn_like(expected)  # where PyTorch itself knows nothing, nothing can be proved
    assert 'zeros would pass' in probe._judge('dx', expected, poor, expected, 5e-5)[0]
