"""Every operator on every backend that can run here: a row each, so that a new operator is measured by one line."""

import functools
from collections.abc import Callable

import torch
from torch import nn

from mmvmamba import kernels
from mmvmamba.kernels import dispatch, testing

from .benchmark import measured
from .kernel_benchmark import DTYPES
from .timing import Times


def _convolution(batch: int, side: int, channels: int, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    conv = nn.Conv2d(channels, channels, 3, groups=channels, device=device, dtype=dtype)
    x = torch.randn(batch, side, side, channels, device=device, dtype=dtype)
    return {'x': x, 'weight': conv.weight.detach(), 'bias': conv.bias.detach()}


def _sequence(batch: int, side: int, channels: int, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    return testing.scan_inputs(batch, 1, channels, length=side**2, dtype=dtype, device=device)


def _ss2d(batch: int, side: int, channels: int, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    return testing.ss2d_inputs(batch, side, side, channels, dtype=dtype, device=device)


def _pooled(batch: int, side: int, channels: int, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    return testing.pooled_scan_inputs(batch, side, side, channels, dtype=dtype, device=device)


def _planes(batch: int, side: int, channels: int, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    return testing.pooled_scan_inputs(batch, side, side, channels, dtype=dtype, device=device, planes=(8,))


CASES: dict[str, tuple[Callable, Callable]] = {
    'depthwise_conv_silu': (kernels.depthwise_conv_silu, _convolution),
    'pooled_scan': (testing.pooled_scan_by_name, _pooled),
    'pooled_scan_planes': (testing.pooled_scan_by_name, _planes),
    'selective_scan': (kernels.selective_scan, _sequence),
    'ss2d': (kernels.ss2d, _ss2d),
}
"""Operator to its function, whose tensors go by name, and its inputs: of batch, side, channels, dtype, device."""


def operators(names: list[str], batch: int, side: int, channels: int, dtype: str, repeat: int) -> list[dict]:
    """Time operators, forward and with their gradients, on each backend that can run here but the reference.

    Args:
        names: keys of `CASES`.
        batch: images.
        side: of the square grid, in positions.
        channels: of the grid.
        dtype: of the activations, a key of `kernel_benchmark.DTYPES`.
        repeat: measured rounds.

    Returns:
        A row per operator, pass and backend; one that fails says why.
    """
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    rows = []
    for name in names:
        function, inputs = CASES[name]
        arguments = inputs(batch, side, channels, DTYPES[dtype], device)
        for backward in (False, True):
            candidates = {
                backend: functools.partial(_run, function, arguments, backend, backward)
                for backend in dispatch.able(name, device, DTYPES[dtype])
                if backend != 'reference'
            }
            for backend, (times, memory) in measured(candidates, repeat, device).items():
                row = {'operator': name, 'pass': 'forward + backward' if backward else 'forward', 'backend': backend}
                rows.append(row | _figures(times, memory))
    return rows


def _run(function: Callable, arguments: dict, backend: str, backward: bool) -> None:
    leaves = {name: tensor.detach().requires_grad_(backward) for name, tensor in arguments.items()}
    y = function(**leaves, backend=backend)
    if backward:
        torch.autograd.grad(y, list(leaves.values()), torch.ones_like(y))


def _figures(times: Times | str, memory: int) -> dict:
    if isinstance(times, str):
        return {'p20 ms': '', 'p50 ms': '', 'p80 ms': '', 'peak MiB': '', 'note': times}
    milliseconds = {f'{name} ms': f'{1e3 * getattr(times, name):.3f}' for name in ('p20', 'p50', 'p80')}
    return {**milliseconds, 'peak MiB': f'{memory / 2**20:.1f}', 'note': ''}
