"""Every variant of a kernel proves itself on this GPU before `auto` takes it: what `dispatch.resolve` asks.

A verdict belongs to all that one pass of an operator launches: kernels, argument types, compile-time constants. On the
first call with such a set a process of its own runs small inputs that launch exactly it, and compares with the
reference (`probe`, `worker`). Verdicts are kept on disk (`verdicts`), and ranks of a job agree on them (`ranks`).
"""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch

from ..dispatch import VERIFY_VARIABLE, verify_mode
from ..shared_triton import launch
from . import probe, ranks, worker
from .facts import facts
from .verdicts import Store, Verdict

_logger = logging.getLogger('mmvmamba.kernels')
_backends: dict[tuple, str] = {}  # facts of a call to its backend
_verdicts: dict[tuple[str, str], Verdict] = {}  # machine and key of a variant
_stores: dict[torch.device, Store] = {}
_lock = threading.RLock()  # single flight: a thread that waits finds the verdict

run_check: Callable[[probe.Call, list], Verdict] = worker.check
"""How a check is run: in another process. Tests may run `probe.check` in their own."""


def forget() -> None:
    """Drop what this process knows; files stay."""
    with _lock:
        for known in (_backends, _verdicts, _stores):
            known.clear()


def resolve(operator: str, direction: str, run: Callable[[], object], arguments: tuple) -> str:
    """See `dispatch.resolve`."""
    how = verify_mode()
    if how == 'off':
        return 'triton'
    key = (how, *facts(operator, direction, arguments))
    backend = _backends.get(key)
    if backend is None:
        backend = _backends[key] = _decide(how, operator, direction, run, arguments)
    return backend


def _decide(how, operator, direction, run, arguments) -> str:
    call = probe.Call.of(operator, direction, arguments)
    if _is_capturing(arguments[0]):
        raise RuntimeError(
            f'{operator} {direction} ({call.words()}): this variant of the Triton kernels has not proved itself on '
            'this GPU yet, and a check cannot run while a CUDA graph is captured; run the same call once before, or '
            f"say {VERIFY_VARIABLE}=off or backend='torch'"
        )
    try:
        with launch.recording() as launches:
            run()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # a size that the kernels refuse, or whatever is wrong with them
        _logger.warning(
            '%s %s (%s): the torch backend runs, as the Triton kernels cannot be asked: %s: %s',
            *(operator, direction, call.words(), type(error).__name__, error),
        )
        return 'torch'
    plan = probe.plan_of(launches)
    if not plan:
        return 'triton'  # an empty batch launches nothing
    return 'triton' if prove(call, plan, how).passed else 'torch'


def _is_capturing(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def prove(call: probe.Call, plan: list, how: str = 'first') -> Verdict:
    """The verdict on what a call launches: known, kept, or found now; says so once where it failed.

    Args:
        call: the call.
        plan: `probe.plan_of` its launches.
        how: 'first' or 'always', see `dispatch.VERIFY_MODES`.
    """
    with _lock:
        store = store_of(torch.device(call.device))
        key = key_of(call, plan)
        verdict = _verdicts.get((store.identity, key))
        if verdict is None:
            verdict = ranks.agreed(store.identity, key, lambda: _find(store, key, call, plan, how), 2 * worker.TIMEOUT)
            _verdicts[store.identity, key] = verdict
            _announce(call, verdict, store)
    return verdict


def store_of(device: torch.device) -> Store:
    """The kept verdicts of a device's kind."""
    if device not in _stores:
        _stores[device] = Store(device)
    return _stores[device]


def key_of(call: probe.Call, plan: list) -> str:
    """Name of a variant: operator, pass, dtype, and a digest of all that is launched."""
    digest = hashlib.sha256(json.dumps(sorted(map(str, plan))).encode()).hexdigest()[:16]
    return f'{call.operator} {call.direction} {call.tensors[0][0]} {digest}'


def _find(store: Store, key: str, call: probe.Call, plan: list, how: str) -> Verdict:
    """What is kept, or a check whose verdict is kept; processes that start together wait for one to check."""
    verdict = store.read(key) if how == 'first' else None
    if verdict is not None:
        return verdict
    began = time.time()
    with store.lock():
        entry = store.entries().get(key)  # another process may just have checked it
        if entry is not None and (how == 'first' or entry.get('time', 0) >= began):
            return Verdict.parse(entry)
        _logger.info('%s %s (%s): checking its kernels on this GPU', call.operator, call.direction, call.words())
        verdict = run_check(call, plan)
        _keep(store, key, call, plan, verdict)
    return verdict


def _keep(store: Store, key: str, call: probe.Call, plan: list, verdict: Verdict) -> None:
    if verdict.kept:
        about = dict(operator=call.operator, direction=call.direction, call=call.words(), time=time.time())
        store.keep(key, verdict, **about, kernels=[variant[1] for variant in plan])


def variants(calls: Iterable[probe.Call]) -> dict[str, tuple[probe.Call, list]]:
    """Different variants that calls launch, by `key_of`: one of the calls, and its plan. Nothing is launched."""
    found = {}
    for call in calls:
        plan = probe.plan_of_call(call)
        if plan:
            found.setdefault(key_of(call, plan), (call, plan))
    return found


def prove_all(pending: dict[str, tuple[probe.Call, list]], jobs: int = 1) -> Iterator[tuple[probe.Call, Verdict]]:
    """Verdicts on `variants`, as they come: kept ones that passed, all others from checks.

    Args:
        pending: from `variants`.
        jobs: processes that check at a time; compilers are what takes time.
    """
    again = verify_mode() == 'always'

    def prove_one(item):
        key, (call, plan) = item
        store = store_of(torch.device(call.device))
        verdict = None if again else store.read(key)
        if verdict is None or not verdict.passed:
            verdict = run_check(call, plan)
            with _lock, store.lock():
                _keep(store, key, call, plan, verdict)
        return call, verdict

    with ThreadPoolExecutor(jobs) as pool:
        try:
            futures = [pool.submit(prove_one, item) for item in pending.items()]
            for future in as_completed(futures):
                yield future.result()
        finally:  # interrupted: what has not begun is left
            pool.shutdown(wait=False, cancel_futures=True)


def _announce(call: probe.Call, verdict: Verdict, store: Store) -> None:
    if verdict.passed:
        _logger.debug('%s %s (%s) has proved itself, see %s', call.operator, call.direction, call.words(), store.path)
        return
    what = 'failed their check on this GPU' if verdict.kept else 'could not prove themselves in this process'
    _logger.warning(
        '%s %s (%s): its Triton kernels %s, the torch backend runs instead: %s',
        *(call.operator, call.direction, call.words(), what, verdict.reason),
    )
