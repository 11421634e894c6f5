"""The check: a small input that launches the same variants as a call, compared with the reference in float64."""

import contextlib
import importlib
import json
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .. import registration
from ..depthwise_conv import torch_conv
from ..pooled_scan import reference as pooled_reference
from ..selective_scan import reference as scan_reference
from ..ss2d import reference as ss2d_reference
from ..testing import relative_error
from .verdicts import Verdict

FACTOR = 4.0
"""How many times the error of the `torch` backend in the same dtype a kernel may show."""

FLOOR = {torch.float32: 5e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""What is forgiven besides, a relative error by norm: float32 kernels take the hardware's fast exp2 and log2."""

GRIDS = (
    *((4, 3), (17, 1), (17, 3), (3, 17), (1, 33), (6, 17), (17, 6), (17, 9), (9, 17), (5, 33), (33, 5)),
    *((3, 70), (70, 3), (6, 70), (70, 6), (9, 70), (70, 9), (17, 20), (17, 70), (70, 17), (32768, 1), (1, 32768)),
)
"""Heights and widths tried in this order: ragged tiles of 8 and 16, lines shorter and longer than a tile, few and many
chunks; the longest are for indices that need another division."""


_SS2D = ('x', 'x_proj_weight', 'dt_projs_weight', 'dt_projs_bias', 'As', 'Ds')
_WAY = ('conv_weight', 'conv_bias', 'x_proj_weight', 'dt_weight', 'dt_bias', 'A', 'Ds')


_LONGEST = 2048
"""Positions of an image that the reference's loop walks in a check."""

_TRIED = 8
"""Grids that fit after which no more are tried: the first and the last of them are run."""


class Layout(NamedTuple):
    """What an operator's implementations take.

    Attributes:
        tensors: names, in order; those of `grid` have the batch's and the image's sizes, the others are parameters.
        grid: name to its shape in letters, of which B, H, W and L vary.
        reference: differentiable, of all tensors and the options.
        saved: of the same, what the forward pass hands the backward pass, which gets it behind `dy`; or None.
    """

    tensors: tuple[str, ...]
    grid: dict[str, str]
    reference: Callable
    saved: Callable | None = None


def _norm_reference(x, x_proj, dt_projs, dt_bias, As, Ds, norm_weight, norm_bias, gate, eps, routes, trains):
    y = ss2d_reference.ss2d(x, x_proj, dt_projs, dt_bias, As, Ds, routes)
    y = F.layer_norm(y, (x.shape[3],), norm_weight, norm_bias, eps)
    return y if gate is None else y * F.silu(gate)


def _routes_sum(*arguments):
    *_, routes, _trains = arguments
    return ss2d_reference.ss2d(*arguments[: len(_SS2D)], routes)


def _pooled_reference(xz, *arguments):
    count = len(_WAY)
    directions = arguments[:count], arguments[count : 2 * count]
    return pooled_reference.pooled_scan(xz, directions, *arguments[2 * count :])


_POOLED = ('xz', *(f'{way}_{name}' for way in ('forth', 'back') for name in _WAY), 'norm_weight', 'norm_bias')

LAYOUTS = {
    'selective_scan': Layout(
        ('u', 'delta', 'A', 'Bs', 'Cs', 'Ds', 'delta_bias'),
        dict(u='BCL', delta='BCL', Bs='BKNL', Cs='BKNL'),
        scan_reference.selective_scan,
    ),
    'ss2d': Layout(_SS2D, dict(x='BHWD'), ss2d_reference.ss2d),
    'ss2d_norm': Layout(
        (*_SS2D, 'norm_weight', 'norm_bias', 'gate'), dict(x='BHWD', gate='BHWD'), _norm_reference, _routes_sum
    ),
    'depthwise_conv_silu': Layout(('x', 'weight', 'bias'), dict(x='BHWD'), torch_conv.depthwise_conv_silu),
    'pooled_scan': Layout(_POOLED, dict(xz='BHWD'), _pooled_reference),
    'pooled_scan_planes': Layout(_POOLED, dict(xz='BHWKD'), _pooled_reference),
}


class Call(NamedTuple):
    """One pass of an operator, without its values; plain, so that it travels between processes.

    Attributes:
        operator, direction: 'ss2d' and so on; 'forward' or 'backward'.
        tensors: of the forward pass, dtype and shape each, or None.
        options: of that pass.
        device: 'cuda:0' and so on.
    """

    operator: str
    direction: str
    tensors: tuple
    options: tuple
    device: str

    @classmethod
    def of(cls, operator: str, direction: str, arguments: tuple) -> 'Call':
        """The call with these arguments of an implementation."""
        layout = LAYOUTS[operator]
        first = 1 + (layout.saved is not None) if direction == 'backward' else 0
        count = len(layout.tensors)
        tensors = arguments[first : first + count]
        described = tuple(None if t is None else (str(t.dtype).removeprefix('torch.'), tuple(t.shape)) for t in tensors)
        return cls(operator, direction, described, tuple(arguments[first + count :]), str(arguments[0].device))

    @classmethod
    def parse(cls, values) -> 'Call':
        """From what JSON makes of one."""
        operator, direction, tensors, options, device = values
        described = tuple(None if t is None else (t[0], tuple(t[1])) for t in tensors)
        return cls(operator, direction, described, tuple(options), device)

    def dtype(self) -> torch.dtype:
        """Of the first tensor, which the others follow."""
        return getattr(torch, self.tensors[0][0])

    def words(self) -> str:
        """For messages: what is compiled in."""
        layout = LAYOUTS[self.operator]
        parts = [
            f'{name} {"x".join(map(str, t[1]))}'
            for name, t in zip(layout.tensors, self.tensors, strict=True)
            if t is not None and name not in layout.grid
        ]
        channels = self.tensors[0][1][1 if layout.grid[layout.tensors[0]] == 'BCL' else -1]
        options = [str(option) for option in self.options]
        return f'{self.tensors[0][0]}, {channels} channels, {", ".join((*parts[:3], *options))}'

    def resized(self, batch: int, height: int, width: int) -> 'Call':
        """The same for a grid of another size."""
        layout = LAYOUTS[self.operator]
        sizes = dict(B=batch, H=height, W=width, L=height * width)

        def shape(name, before):
            if name not in layout.grid:
                return before
            return tuple(sizes.get(letter, size) for letter, size in zip(layout.grid[name], before, strict=True))

        named = zip(layout.tensors, self.tensors, strict=True)
        return self._replace(tensors=tuple(None if t is None else (t[0], shape(name, t[1])) for name, t in named))

    def inputs(self, seed: int = 0) -> list[torch.Tensor | None]:
        """Random tensors for the forward pass."""
        generator = torch.Generator().manual_seed(seed)
        tensors = []
        for name, described in zip(LAYOUTS[self.operator].tensors, self.tensors, strict=True):
            if described is None:
                tensors.append(None)
                continue
            dtype, shape = described
            values = _values(name.removeprefix('forth_').removeprefix('back_'), shape, generator)
            tensors.append(values.to(self.device, getattr(torch, dtype)))
        return tensors


def _values(name, shape, generator) -> torch.Tensor:
    """As a network has them: decaying states, products that keep their size, steps below one."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if name in ('A', 'As'):
        return -torch.exp(0.5 * values)
    if name in ('dt_projs_bias', 'delta_bias', 'dt_bias'):
        return values - 1
    if name == 'norm_weight':
        return 1 + 0.2 * values
    if name.endswith('weight') and values.ndim > 1:
        return values * math.prod(shape[1:] if name in ('weight', 'conv_weight') else shape[-1:]) ** -0.5
    return values


class _Poisoned(TorchFunctionMode):
    """New floating point memory is full of NaN: what a kernel leaves out shows.

    Inside PyTorch's operators, ours among them, no such mode is active: implementations are run by themselves.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if getattr(function, '__name__', '') in _MAKERS and made.is_floating_point():
            made.detach().fill_(float('nan'))
        return made


_MAKERS = {'empty', 'empty_like', 'new_empty', 'empty_strided', 'new_empty_strided'}


def operator_of(call: Call, direction: str):
    """The registered operator of a pass."""
    return getattr(torch.ops.mmvmamba, call.operator + ('_backward' if direction == 'backward' else ''))


def plan_of(launches) -> list:
    """The variants among launches, as JSON has them."""
    return json.loads(json.dumps(list(dict.fromkeys(launch.variant() for launch in launches))))


def empty_arguments(call: Call) -> tuple:
    """What the implementation of a call's pass takes, of its size and holding nothing."""
    tensors = [
        None if t is None else torch.empty(t[1], dtype=getattr(torch, t[0]), device=call.device) for t in call.tensors
    ]
    before = []
    if call.direction == 'backward':
        shapes = [None if t is None else t.to('meta') for t in tensors]
        made = _listed(operator_of(call, 'forward')(*shapes, *call.options, 'torch'))
        before = [torch.empty_like(t, device=call.device) for t in made]
    return *before, *tensors, *call.options


def plan_of_call(call: Call) -> list:
    """The variants that a call launches."""
    with torch.no_grad(), _launching().recording() as launches:
        operator_of(call, call.direction)(*empty_arguments(call), 'triton')
    return plan_of(launches)


def _launching():
    return importlib.import_module('..shared_triton.launch', __package__)


def _arguments(call: Call, tensors: list) -> tuple[torch.Tensor | None, list]:
    """What the pass of a call takes for these tensors, and the cotangent of a backward pass."""
    if call.direction == 'forward':
        return None, [*tensors, *call.options]
    made = operator_of(call, 'forward')(*tensors, *call.options, 'torch')
    y, *saved = _listed(made)
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, y.dtype)
    return dy, [dy, *saved, *tensors, *call.options]


def _listed(made) -> list[torch.Tensor]:
    return list(made) if isinstance(made, (tuple, list)) else [made]


def same_variants(call: Call, plan: list) -> list[Call]:
    """Small inputs that launch exactly `plan`: the first and the last that were tried."""
    found = []
    for height, width in GRIDS:
        if len(found) == _TRIED or (found and height * width > _LONGEST):
            break
        for batch in (2, 1):
            small = call.resized(batch, height, width)
            if _same(plan_of_call(small), plan):
                found.append(small)
                break
    return found[:1] + found[-1:] if len(found) > 1 else found


def _same(left: list, right: list) -> bool:
    return sorted(map(str, left)) == sorted(map(str, right))


def _exact(call: Call, cotangent, tensors) -> list[torch.Tensor]:
    """What the pass should give, by the reference in float64, on the CPU.

    Its loop would need too much time and memory on the longest grids: there the `torch` backend stands in, also in
    float64.
    """
    exact = [None if t is None else t.detach().cpu().double() for t in tensors]
    layout = LAYOUTS[call.operator]
    if _positions(call) > _LONGEST:
        before = []
        if cotangent is not None:
            saved = _listed(operator_of(call, 'forward')(*exact, *call.options, 'torch'))[1:]
            before = [cotangent.cpu().double(), *saved]
        return _run(call, [*before, *exact, *call.options], exact, 'torch')
    if cotangent is None:
        return [function(*exact, *call.options) for function in (layout.reference, layout.saved) if function]
    with torch.enable_grad():
        leaves = [None if t is None else t.requires_grad_() for t in exact]
        y = layout.reference(*leaves, *call.options)
        return list(torch.autograd.grad(y, [t for t in leaves if t is not None], cotangent.cpu().double()))


def _positions(call: Call) -> int:
    shape = call.tensors[0][1]
    return shape[2] if len(shape) == 3 else math.prod(shape[1:-1])


def _run(call: Call, arguments, tensors, backend: str) -> list[torch.Tensor]:
    results = _listed(registration.operators[call.operator].run(call.direction, *arguments, backend))
    if call.direction == 'forward':
        return results
    return [grad for grad, tensor in zip(results, tensors, strict=True) if tensor is not None]


def _judge(name: str, actual, yardstick, expected, floor: float) -> tuple[str, list[float]]:
    """Why a result is wrong, or nothing; its error, the `torch` backend's and the limit."""
    if actual.shape != expected.shape:
        return f'{name} has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}', []
    actual = actual.detach().cpu().double()
    theirs = relative_error(yardstick.detach().cpu(), expected)
    limit = max(FACTOR * theirs, floor)
    if not actual.isfinite().all():
        return f'{name}: {(~actual.isfinite()).sum().item()} of {actual.numel()} values are not finite', []
    error = relative_error(actual, expected)
    errors = [error, theirs, limit]
    if error > limit:
        return f'{name}: relative error {error:.2g}, limit {limit:.2g} (torch: {theirs:.2g})', errors
    if expected.norm() > 0 and relative_error(torch.zeros_like(expected), expected) <= limit:
        return f'{name}: zeros would pass, the limit is {limit:.2g} (torch: {theirs:.2g})', errors
    return '', errors


def _names(call: Call) -> list[str]:
    if call.direction == 'forward':
        return ['y', 'saved'][: 1 + (LAYOUTS[call.operator].saved is not None)]
    names = LAYOUTS[call.operator].tensors
    return [f'd{name}' for name, t in zip(names, call.tensors, strict=True) if t is not None]


def _compare(call: Call, plan: list) -> tuple[list[str], dict[str, list[float]]]:
    """Faults of a call that should launch `plan`, and errors of what it gives."""
    tensors = call.inputs()
    cotangent, arguments = _arguments(call, tensors)
    with _launching().recording(launching=True) as launches, _Poisoned():
        actual = _run(call, arguments, tensors, 'triton')
        if actual[0].is_cuda:
            torch.cuda.synchronize(actual[0].device)
    launched = plan_of(launches)
    if not _same(launched, plan):
        return [f'launched {launched} instead of {plan}'], {}
    yardstick = _run(call, arguments, tensors, 'torch')
    expected = _exact(call, cotangent, tensors)
    faults, errors = [], {}
    for name, *values in zip(_names(call), actual, yardstick, expected, strict=True):
        if not values[0].numel() and not values[1].numel():
            continue  # inference saves nothing
        fault, errors[name] = _judge(name, *values, FLOOR[call.dtype()])
        if fault:
            faults.append(fault)
    return faults, errors


def check(call: Call, plan: list) -> Verdict:
    """Run small inputs that launch the variants `plan` and compare every result; any fault is a failed verdict."""
    start = time.monotonic()
    faults, worst = [], {}
    try:
        with contextlib.ExitStack() as stack:
            for context in (
                torch.inference_mode(False),
                torch.no_grad(),
                torch.autocast(torch.device(call.device).type, enabled=False),
            ):
                stack.enter_context(context)
            smaller = same_variants(call, plan)
            if not smaller:
                faults.append(f'none of the small inputs launches {plan}')
            for small in smaller:
                found, errors = _compare(small, plan)
                faults += found
                for name, values in errors.items():
                    worst[name] = max(worst.get(name, []), values)
    except Exception as error:  # whatever a kernel, its compiler or the driver raises is what is asked about
        if _lacks_memory(error):  # which says nothing about kernels: others have it
            return Verdict(False, f'no memory for its check, free some: {_in_words(error)}', kept=False)
        faults.append(_in_words(error))
    return Verdict(not faults, '; '.join(dict.fromkeys(faults)), worst, round(time.monotonic() - start, 2))


def _lacks_memory(error: BaseException) -> bool:
    words = ('out of memory', "can't allocate memory")
    return isinstance(error, MemoryError) or any(each in str(error) for each in words)


def _in_words(error: BaseException) -> str:
    """An exception and what caused it first; compilers quote whole kernels before they come to the point."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    words = [f'{type(each).__name__}: {" ".join(str(each).split())}' for each in dict.fromkeys((root, error))]
    return ' <- '.join(text if len(text) < 400 else f'{text[:150]} ... {text[-250:]}' for text in words)
