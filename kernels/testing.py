"""What tests and benchmarks of the operators share: comparison by norm, random inputs, golden tensors."""

import json
from pathlib import Path

import torch

from .pooled_scan.op import Direction, pooled_scan, pooled_scan_kept

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Relative error by norm that a backend may show against the reference, per input dtype."""

_WAYS = ('forth', 'back')


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


def pooled_scan_inputs(
    batch=2,
    height=5,
    width=7,
    channels=8,
    states=2,
    rank=3,
    window=4,
    norm=True,
    dtype=torch.float32,
    parameter=None,
    device='cpu',
    planes=(),
):
    """Random arguments of `pooled_scan_by_name`; parameters are float32 beside half precision, or `parameter`.

    `planes`: their number in a tuple, or nothing.
    """
    generator = torch.Generator().manual_seed(0)
    parameter = parameter or (dtype if dtype == torch.float64 else torch.float32)

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(device, parameter)

    arguments = {'xz': normal(batch, height, width, *planes, 2 * channels).to(dtype)}
    for way in _WAYS:
        direction = Direction(
            conv_weight=normal(channels, 1, window, scale=window**-0.5),
            conv_bias=normal(channels, scale=0.5),
            x_proj_weight=normal(rank + 2 * states, channels, scale=channels**-0.5),
            dt_weight=normal(channels, rank, scale=rank**-0.5),
            dt_bias=normal(channels) - 1,
            A=-torch.exp(normal(channels, states, scale=0.5)),
            Ds=normal(channels),
        )
        arguments.update({f'{way}_{field}': value for field, value in direction._asdict().items()})
    if norm:
        arguments.update(norm_weight=1 + normal(channels, scale=0.2), norm_bias=normal(channels, scale=0.2))
    return arguments


def pooled_scan_by_name(xz, norm_weight=None, norm_bias=None, *, kept=(), **named):
    """`pooled_scan` with its directions' tensors as arguments of their own: `forth_A`, `back_A` and so on.

    `kept`: places and grid, to run `pooled_scan_kept` on `xz (B, M, 2D)`.
    """
    ways = [Direction(*(named.pop(f'{way}_{field}') for field in Direction._fields)) for way in _WAYS]
    function = pooled_scan_kept if kept else pooled_scan
    return function(xz, *kept, *ways, norm_weight, norm_bias, **named)


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
    """Read a golden file: its tensors, and its metadata with JSON values decoded where they are JSON.

    Tensors that several files of a folder have lie once in its `shared_N.safetensors`; the entry `shared` of a file's
    metadata says which.
    """
    from safetensors import safe_open

    with safe_open(path, framework='pt') as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        metadata = dict(file.metadata() or {})
    shared = {name: place.split(':') for name, place in json.loads(metadata.pop('shared', '{}')).items()}
    for number in {number for number, _ in shared.values()}:
        with safe_open(Path(path).parent / f'shared_{number}.safetensors', framework='pt') as file:
            tensors |= {name: file.get_tensor(key) for name, (part, key) in shared.items() if part == number}
    if 'official_kwargs' in metadata:
        metadata['official_kwargs'] = json.loads(metadata['official_kwargs'])
    return tensors, metadata
