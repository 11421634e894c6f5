"""Whether a file computes what the model does, at sizes that it was not traced at."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from . import instances
from .modules import Exportable

SIZES = ((224, 224), (333, 517), (160, 96), (97, 203))
TOLERANCE = 1e-4
"""Largest difference over the largest magnitude of an output. Of class maps: the part of pixels that may differ is ten
times that, as two classes may be equally likely."""


@dataclass
class Row:
    """One size.

    Attributes:
        size: (H, W).
        difference: the worst output's.
        seconds, torch_seconds: of the second of two runs each.
        allowed: what the difference may be.
        instances: of detectors, what the difference is a part of: how many, and how they were chosen.
    """

    size: tuple[int, int]
    difference: float
    seconds: float
    torch_seconds: float
    allowed: float
    instances: str = ''

    @property
    def passed(self) -> bool:
        """Whether the difference is small enough; one that is no number is not."""
        return self.difference <= self.allowed


def runner(path: str | Path, kind: str, threads: int | None = None) -> Callable[..., list[np.ndarray]]:
    """A function of an image `(B, 3, H, W)`, and of a file's optional inputs by name, that runs a file.

    Args:
        path: of the file.
        kind: 'onnx' (by onnxruntime), 'program' or 'package'.
        threads: of onnxruntime; PyTorch's own number by default.
    """
    if kind == 'onnx':
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # no warning that an optional input is one
        options.intra_op_num_threads = threads or torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        name = session.get_inputs()[0].name
        return lambda image, **more: session.run(None, {name: image, **more})
    if kind == 'program':
        module = torch.export.load(str(path)).module()
    else:
        module = torch._inductor.aoti_load_package(str(path))

    def run(image):
        with torch.no_grad():
            return _listed(module(torch.from_numpy(image)))

    return run


def _listed(outputs) -> list[np.ndarray]:
    return [t.numpy() for t in (outputs if isinstance(outputs, (tuple, list)) else (outputs,))]


def check(what: Exportable, run, sizes=SIZES, image: np.ndarray | None = None) -> list[Row]:
    """Run a file and the model that it was made from at several sizes.

    Args:
        what: the model.
        run: see `runner`.
        sizes: (H, W) each.
        image: `(H, W, 3)` RGB, resized to each size; random numbers otherwise.
    """
    return [_row(what, run, size, _input(what, size, image)) for size in sizes]


def _input(what, size, image) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    raw = what.facts['input'] == 'RGB 0..255'
    if image is None:
        sample = torch.rand(1, 3, *size, generator=generator) * 255
    else:
        sample = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        sample = F.interpolate(sample, size, mode='bilinear', antialias=True)
    return (sample if raw else (sample - 120) / 58).numpy()


def _timed(function, argument):
    function(argument)
    start = time.perf_counter()
    result = function(argument)
    return result, time.perf_counter() - start


def _row(what, run, size, sample) -> Row:
    if what.detects:
        return _row_of_instances(what, run, size, sample)

    def by_torch(sample):
        with torch.no_grad():
            return _listed(what.module(torch.from_numpy(sample)))

    expected, torch_seconds = _timed(by_torch, sample)
    actual, seconds = _timed(run, sample)
    labels = np.issubdtype(expected[0].dtype, np.integer)
    pairs = list(zip(actual, expected, strict=True))
    difference = max((_mismatch if labels else _difference)(*pair) for pair in pairs)
    return Row(tuple(size), difference, seconds, torch_seconds, TOLERANCE * (10 if labels else 1))


def _row_of_instances(what, run, size, sample) -> Row:
    """A detector beside its toolbox: at its threshold for scores, without one where that leaves little to compare."""

    def by_toolbox(sample, threshold=None):
        with torch.no_grad():
            return _listed(what.module.by_toolbox(torch.from_numpy(sample), threshold))

    expected, torch_seconds = _timed(by_toolbox, sample)
    actual, seconds = _timed(run, sample)
    threshold = float(what.module.score_threshold)
    if min(len(expected[0]), len(actual[0])) < instances.FEWEST:
        threshold = 0.0
        expected = by_toolbox(sample, threshold)
        actual = run(sample, score_threshold=np.zeros(1, np.float32))
    difference = instances.unmatched(actual, expected, max(size))
    found = f'{len(expected[0])} instances that score above {threshold:.2g}'
    return Row(tuple(size), difference, seconds, torch_seconds, instances.ALLOWED, found)


def _mismatch(actual, expected) -> float:
    return float((actual != expected).mean()) if actual.shape == expected.shape else float('inf')


def _difference(actual, expected) -> float:
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float('inf')
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))
