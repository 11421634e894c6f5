"""What tests and benchmarks of the operators share: comparison by norm, random inputs, golden tensors."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Relative error by norm that a backend may show against the reference, per input dtype."""


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected (which may be zero only if both are)."""
    actual, expected = actual.double(), expected.double()
    difference = (actual - expected).norm().item()
    return 0.0 if difference == 0 else difference / max(expected.norm().item(), 1e-30)


def assert_close(name: str, actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Fail unless `actual` has the expected shape, is finite and lies within `tolerance` by norm."""
    assert actual is not None, f'{name}: missing'
    assert actual.shape == expected.shape, f'{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}'
    assert actual.isfinite().all(), f'{name}: {(~actual.isfinite()).sum().item()} values are not finite'
    error = relative_error(actual, expected)
    assert error <= tolerance, f'{name}: relative error {error:.3g} exceeds {tolerance:.3g}'


def scan_inputs(batch=2, groups=4, channels=8, states=1, length=33, dtype=torch.float32, device='cpu', seed=0):
    """Random arguments of `selective_scan`, by name; parameters stay float32 beside half-precision activations."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0, dtype=dtype):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(device, dtype)

    parameter = dtype if dtype == torch.float64 else torch.float32
    total = groups * channels
    return {
        'u': normal(batch, total, length),
        'delta': normal(batch, total, length, scale=0.5),
        'A': -torch.exp(normal(total, states, scale=0.5, dtype=parameter)),
        'Bs': normal(batch, groups, states, length),
        'Cs': normal(batch, groups, states, length),
        'Ds': normal(total, dtype=parameter),
        'delta_bias': normal(total, dtype=parameter) - 1,
    }


def ss2d_inputs(batch=2, height=5, width=7, channels=8, states=1, rank=3, dtype=torch.float32, device='cpu', seed=0):
    """Random arguments of `ss2d`, by name; parameters stay float32 beside half-precision activations."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0, dtype=dtype):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(device, dtype)

    parameter = dtype if dtype == torch.float64 else torch.float32
    return {
        'x': normal(batch, height, width, channels),
        'x_proj_weight': normal(4, rank + 2 * states, channels, scale=channels**-0.5, dtype=parameter),
        'dt_projs_weight': normal(4, channels, rank, scale=rank**-0.5, dtype=parameter),
        'dt_projs_bias': normal(4, channels, dtype=parameter) - 1,
        'As': -torch.exp(normal(4 * channels, states, scale=0.5, dtype=parameter)),
        'Ds': normal(4 * channels, dtype=parameter),
    }


def output_and_gradients(function, arguments: dict, seed=0, **options):
    """Run `function` and pull a fixed random cotangent back: the output and the gradient of every tensor, by name."""
    leaves = {k: None if v is None else v.detach().clone().requires_grad_() for k, v in arguments.items()}
    y = function(**leaves, **options)
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, y.dtype)
    present = {k: v for k, v in leaves.items() if v is not None}
    grads = torch.autograd.grad(y, list(present.values()), cotangent)
    return y.detach(), dict(zip(present, grads, strict=True))


def load_golden(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Read a golden file: its tensors, and its metadata with JSON values decoded where they are JSON."""
    with safe_open(path, framework='pt') as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        metadata = dict(file.metadata() or {})
    if 'official_kwargs' in metadata:
        metadata['official_kwargs'] = json.loads(metadata['official_kwargs'])
    return tensors, metadata
