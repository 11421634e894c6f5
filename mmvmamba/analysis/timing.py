"""Wall-clock measurements that may be compared with each other: same run, same threads, interleaved."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .record import clocks, commit, sources


def failures() -> tuple[type[Exception], ...]:
    """By what a candidate may fail and leave the others to be measured.

    Errors of PyTorch, ours, Triton's compiler; `ValueError` at an input that a network does not take.
    """
    try:
        from triton.errors import TritonError
    except ImportError:
        return RuntimeError, ValueError
    return RuntimeError, ValueError, TritonError


@dataclass(frozen=True)
class Times:
    """Seconds of one candidate: the 20th, 50th and 80th percentile of its repetitions."""

    p20: float
    p50: float
    p80: float


def interleaved(
    candidates: Mapping[str, Callable[[], object]], repeat: int = 5, device: str = 'cpu', warm: bool = False
) -> dict[str, Times]:
    """Time functions turn by turn, so that a machine's mood strikes all of them alike.

    Args:
        candidates: label to a function without arguments.
        repeat: measured rounds, after one that is not.
        device: on 'cuda' the GPU's own clock is read, by events around a call that starts on an idle GPU.
        warm: call each once more, unmeasured, just before: what the candidate before it has left in the caches, or
            thrown out of them, does not count.

    Returns:
        Label to percentiles, in seconds.
    """
    stopwatch = _gpu_seconds if device == 'cuda' else _seconds
    seconds: dict[str, list[float]] = {label: [] for label in candidates}
    for turn in range(repeat + 1):
        for label, function in candidates.items():
            if warm:
                function()
            spent = stopwatch(function)
            if turn:
                seconds[label].append(spent)
    return {label: _percentiles(values) for label, values in seconds.items()}


def _seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _gpu_seconds(function) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def _percentiles(values: list[float]) -> Times:
    if len(values) < 2:
        return Times(values[0], values[0], values[0])
    fifths = statistics.quantiles(values, n=5, method='inclusive')
    return Times(fifths[0], statistics.median(values), fifths[3])


def machine() -> dict[str, str]:
    """What a measurement must be labelled with: commit, sources, device and its clocks now, threads, versions."""
    device = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        models = [line.split(':', 1)[1].strip() for line in cpuinfo.read_text().splitlines() if 'model name' in line]
        device = models[0] if models else device
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return {
        'commit': commit(),
        'sources': sources(),
        'device': device,
        'clocks': clocks() or 'not read',
        'threads': str(torch.get_num_threads()),
        'torch': torch.__version__,
        'python': platform.python_version(),
    }
