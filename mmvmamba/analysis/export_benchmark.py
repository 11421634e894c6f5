"""Exported backbones in onnxruntime beside PyTorch: exactness, size, time, memory."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import print_log
from torch import nn

from mmvmamba.deploy import checking, exporting, modules
from mmvmamba.models import FastVim, VMamba

BACKBONES = {
    'VMamba-T s1l8': lambda backend: VMamba('tiny_s1l8', backend=backend),
    'vanilla VMamba-T': lambda backend: VMamba('tiny_v0', backend=backend),
    'FastVim-T': lambda backend: FastVim('tiny', backend=backend),
    'Vim-T': lambda backend: FastVim('tiny', pool=None, backend=backend),
}
"""By name: functions of a backend; all have weights of the same seed."""

_EXACT = ((224, 224), (333, 517), (800, 1280))
_MEMORY = ((400, 640), (800, 1280))
_SIDE = 512


def export(repeat: int, models: list[str]) -> list[dict]:
    """Export backbones with fresh weights for all sizes; times are of the clock, on a machine that does nothing else.

    Args:
        repeat: measured rounds, after one that is not.
        models: of `BACKBONES`.
    """
    with tempfile.TemporaryDirectory() as folder:
        return [_row(name, Path(folder) / 'model.onnx', repeat) for name in models]


def _exportable(name: str, backend: str) -> modules.Exportable:
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = BACKBONES[name](backend)
    return modules.exportable(model, 'backbone')


def _row(name: str, path: Path, repeat: int) -> dict:
    what = _exportable(name, 'cpu')
    start = time.perf_counter()
    exporting.to_onnx(what, path)
    spent = time.perf_counter() - start
    weights = sum(tensor.numel() * tensor.element_size() for tensor in what.module.state_dict().values())
    run = checking.runner(path, 'onnx')
    differences = {size: _worst(what, run, size) for size in _EXACT}
    times = _times({'onnxruntime': run, **{b: _by_torch(name, b) for b in ('cpu', 'torch')}}, repeat)
    del run
    memory = {size: _peak(path, size) for size in _MEMORY}
    row = {
        'backbone': name,
        **{f'{h} x {w}': f'{value:.1e}' for (h, w), value in differences.items()},
        'file / weights': f'{os.path.getsize(path) / weights:.3f}',
        **{f'{key} s': f'{value:.2f}' for key, value in times.items()},
        'onnxruntime / cpu': f'{times["onnxruntime"] / times["cpu"]:.2f}',
        'export s': f'{spent:.0f}',
        **{f'GB, {h} x {w}': f'{value:.2f}' for (h, w), value in memory.items()},
    }
    print_log(f'{row}, load of the machine {os.getloadavg()[0]:.1f}', logger='current')  # the next takes minutes
    return row


def _worst(what, run, size) -> float:
    return checking.check(what, run, [size])[0].difference


def _by_torch(name: str, backend: str):
    module = _exportable(name, backend).module

    def run(image):
        with torch.no_grad():
            module(torch.from_numpy(image))

    return run


def _times(candidates: dict, repeat: int) -> dict[str, float]:
    """Medians of seconds, taken turn by turn."""
    image = np.random.default_rng(0).standard_normal((1, 3, _SIDE, _SIDE), dtype=np.float32)
    seconds = {label: [] for label in candidates}
    for turn in range(repeat + 1):
        for label, function in candidates.items():
            start = time.perf_counter()
            function(image)
            if turn:
                seconds[label].append(time.perf_counter() - start)
    return {label: statistics.median(values) for label, values in seconds.items()}


_PEAK = """
import sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])
image = numpy.zeros((1, 3, int(sys.argv[3]), int(sys.argv[4])), numpy.float32)
session.run(None, {session.get_inputs()[0].name: image})
print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""


def _peak(path: Path, size: tuple[int, int]) -> float:
    """GB that a process of onnxruntime alone holds at most, the library and the weights with it; Linux only."""
    command = [sys.executable, '-c', _PEAK, str(path), str(torch.get_num_threads()), *map(str, size)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024 / 1e9
