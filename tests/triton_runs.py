"""What all tests of Triton kernels share: they run in Triton's interpreter (`interpreter.py`), or on a GPU."""

import interpreter
import pytest
import torch
from mmvmamba.kernels import dispatch
from mmvmamba.kernels.testing import TOLERANCE, assert_close, output_and_gradients

OLDEST_TRITON = '.'.join(map(str, dispatch.OLDEST_TRITON))
"""What the kernels need: `pytest.importorskip('triton', minversion=OLDEST_TRITON)`, before any of them is imported."""

INTERPRETED = interpreter.interpreted
DEVICE = 'cpu' if INTERPRETED else 'cuda'
FLOAT32 = 1e-5 if INTERPRETED else 1e-4  # a GPU takes the hardware's fast log2
LOGITS = 2e-6 if INTERPRETED else 1e-4  # absolute, of classifiers
TOLERANCES = {**TOLERANCE, torch.float32: FLOAT32}

MARKS = [
    pytest.mark.interpreter,
    # exponentials overflow on purpose far beyond what softplus and sigmoid need of them
    pytest.mark.filterwarnings('ignore:overflow encountered:RuntimeWarning'),
    pytest.mark.usefixtures('poisoned_buffers', 'quick_interpreter'),
]
"""For every file of such tests: `pytestmark = MARKS`."""


def check(function, arguments, tolerance, **options):
    """Output and every gradient against the reference in float64, on the same rounded inputs."""
    y, grads = output_and_gradients(function, arguments, backend='triton', **options)
    exact = {k: None if v is None else v.double() for k, v in arguments.items()}
    expected, expected_grads = output_and_gradients(function, exact, backend='reference', **options)
    assert y.dtype == torch.float32
    assert_close('y', y, expected, tolerance)
    for name, grad in grads.items():
        assert grad.dtype == arguments[name].dtype
        assert_close(name, grad, expected_grads[name], tolerance)
    return y, grads


def check_like_input(function, arguments, tolerance, **options):
    """As `check`, for operators whose result has the input's dtype, against PyTorch in float64."""
    y, grads = output_and_gradients(function, arguments, backend='triton', **options)
    exact = {k: None if v is None else v.double() for k, v in arguments.items()}
    expected, expected_grads = output_and_gradients(function, exact, backend='reference', **options)
    assert y.dtype == arguments['x'].dtype
    assert_close('y', y, expected, tolerance)
    for name, grad in grads.items():
        assert grad.dtype == arguments[name].dtype
        assert_close(name, grad, expected_grads[name], 2 * tolerance)
