"""Wall-clock measurements that may be compared with each other: same run, same threads, interleaved."""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Times:
    """Seconds of one candidate: the 20th, 50th and 80th percentile of its repetitions."""

    p20: float
    p50: float
    p80: float


def interleaved(
    candidates: Mapping[str, Callable[[], object]], repeat: int = 5, device: str = 'cpu'
) -> dict[str, Times]:
    """Time functions turn by turn, so that a machine's mood strikes all of them alike.

    Args:
        candidates: label to a function without arguments.
        repeat: measured rounds, after one that is not.
        device: on 'cuda' the clock is read after synchronising.

    Returns:
        Label to percentiles, in seconds.
    """
    synchronise = torch.cuda.synchronize if device == 'cuda' else lambda: None
    seconds: dict[str, list[float]] = {label: [] for label in candidates}
    for turn in range(repeat + 1):
        for label, function in candidates.items():
            synchronise()
            start = time.perf_counter()
            function()
            synchronise()
            if turn:
                seconds[label].append(time.perf_counter() - start)
    return {label: _percentiles(values) for label, values in seconds.items()}


def _percentiles(values: list[float]) -> Times:
    if len(values) < 2:
        return Times(values[0], values[0], values[0])
    fifths = statistics.quantiles(values, n=5, method='inclusive')
    return Times(fifths[0], statistics.median(values), fifths[3])


def machine() -> dict[str, str]:
    """What a measurement must be labelled with: commit, device, threads, versions."""
    root = Path(__file__).resolve().parents[2]
    git = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=root, capture_output=True, text=True)
    device = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        models = [line.split(':', 1)[1].strip() for line in cpuinfo.read_text().splitlines() if 'model name' in line]
        device = models[0] if models else device
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return {
        'commit': git.stdout.strip() or 'no git checkout',
        'device': device,
        'threads': str(torch.get_num_threads()),
        'torch': torch.__version__,
        'python': platform.python_version(),
    }
