"""Benchmarks: each function measures one question in one run and returns rows for a table."""

import torch

from mmvmamba.kernels import availability, ss2d
from mmvmamba.kernels.testing import ss2d_inputs

from .timing import interleaved


def kernels(height: int, width: int, channels: int, states: int, batch: int, backward: bool, repeat: int) -> list[dict]:
    """Time `ss2d` on every backend that can run here.

    Args:
        height, width, channels, states, batch: the grid `(batch, height, width, channels)` and the state's size.
        backward: time forward and backward together.
        repeat: measured rounds.

    Returns:
        A row per backend, slowest first: seconds, nanoseconds per element and route, ratio to the slowest.
    """
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    arguments = ss2d_inputs(batch, height, width, channels, states, device=device)
    for argument in arguments.values():
        argument.requires_grad_(backward)

    def candidate(backend):
        def run():
            with torch.set_grad_enabled(backward):
                y = ss2d(**arguments, backend=backend)
                if backward:
                    torch.autograd.grad(y.sum(), list(arguments.values()))

        return run

    able = [backend for backend, reason in availability(device).items() if reason is None]
    times = interleaved({backend: candidate(backend) for backend in able}, repeat, device)
    slowest = max(t.p50 for t in times.values())
    elements = 4 * batch * height * width * channels
    return [
        {
            'backend': backend,
            'p20 s': f'{t.p20:.4f}',
            'p50 s': f'{t.p50:.4f}',
            'p80 s': f'{t.p80:.4f}',
            'ns per element and route': f'{t.p50 / elements * 1e9:.2f}',
            'times faster than the slowest': f'{slowest / t.p50:.1f}',
        }
        for backend, t in sorted(times.items(), key=lambda item: -item[1].p50)
    ]


def markdown(rows: list[dict]) -> str:
    """Rows of equal keys as a markdown table."""
    keys = list(rows[0])
    lines = [keys, ['---'] * len(keys), *([str(row[key]) for key in keys] for row in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
