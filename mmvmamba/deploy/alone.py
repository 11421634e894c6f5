"""Whether every operator of a model, in the form in which it was exported, computes what it should, by itself.

A model's output cannot show it: with fresh weights a scan's states are a hundred thousandth of a map. Here its inputs
are of size one and its decays neither 0 nor 1, so that the first position is heard at the last.
"""

from collections.abc import Callable, Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmvmamba.kernels import dispatch, registration

SIZES = (3, 9, 13, 6, 4)
"""Of what is dynamic, in turn; others than an operator is traced at."""

Signature = tuple[tuple, ...]
"""Of an operator's arguments but the backend: ('tensor', dtype, sizes) or ('option', value); size '?n' is dynamic."""

DTYPES = {'float': torch.float32, 'double': torch.float64, 'float16': torch.float16, 'bfloat16': torch.bfloat16}


def samples(operator, signature: Signature) -> list:
    """Random arguments of an operator."""
    generator = torch.Generator().manual_seed(0)

    def sample(name, entry):
        if entry[0] == 'option':
            return entry[1]
        sizes = [SIZES[int(size[1:])] if isinstance(size, str) else size for size in entry[2]]
        values = torch.randn(sizes, generator=generator)
        if name.endswith(('A', 'As')):  # negative: decays
            values = -torch.exp(0.5 * values)
        elif 'weight' in name and values.dim() > 1:
            values = values * sizes[-1] ** -0.5
        elif name.endswith(('dt_bias', 'dt_projs_bias', 'delta_bias')):
            values = values - 1
        return values.to(DTYPES[entry[1]])

    names = [argument.name for argument in operator.op._schema.arguments]
    return [sample(*pair) for pair in zip(names, signature, strict=False)]


def difference(candidates: Iterable[tuple[object, Signature, Callable[[list], torch.Tensor]]]) -> float:
    """The largest difference to the reference, over the largest magnitude of what it gives; infinite where it is none.

    Args:
        candidates: operators, signatures, and what computes them from arguments.
    """
    worst = 0.0
    with torch.no_grad():
        for operator, signature, compute in candidates:
            arguments = samples(operator, signature)
            expected = operator.run('forward', *arguments, 'torch')
            error = (compute(arguments) - expected).abs().max() / expected.abs().max()
            worst = max(worst, float(error.nan_to_num(float('inf'))))
    return worst


def decomposed(module: torch.nn.Module, image: torch.Tensor) -> float:
    """`difference` of what an exported program is made of, of all operators that a module calls for this image."""
    with torch.no_grad(), dispatch.exporting(opaque=True), _Calls() as calls:
        module(image)
    return difference(
        (operator, signature, lambda arguments, operator=operator: operator.decomposed(*arguments))
        for operator, signature in calls.seen
    )


class _Calls(TorchDispatchMode):
    """Notes operators of ours and their signatures."""

    def __init__(self):
        super().__init__()
        self.seen = {}  # an ordered set
        self._names = {dtype: name for name, dtype in DTYPES.items()}
        self._operators = {operator.op: operator for operator in registration.operators.values()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in self._operators:
            signature = tuple(
                ('tensor', self._names[value.dtype], tuple(value.shape))
                if isinstance(value, torch.Tensor)
                else ('option', value)
                for value in args[:-1]
            )
            self.seen[self._operators[function], signature] = None
        return function(*args, **(kwargs or {}))
