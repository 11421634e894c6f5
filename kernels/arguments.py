"""Checks at an operator's door: every message names the argument, what came and what was expected."""

import torch

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, type(None)))
_MOST = 10_000
_passed: set[tuple] = set()  # at most so many; a training run on images of all sizes has thousands


def case_of(operator: str, tensors, *options) -> tuple | None:
    """All that the checks of a call look at, to make them once; None where they must be made again.

    That is where sizes are symbols (in a compiler, exporter or trace), or where something is no plain tensor.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not _PLAIN.issuperset(map(type, tensors)):
        return None
    case = (operator, options, *[None if t is None else (t.shape, t.dtype, t.device) for t in tensors])
    try:
        hash(case)
    except TypeError:  # an option of another kind than any that is expected
        return None
    return case


def has_passed(case: tuple | None) -> bool:
    """Whether a call like this one was checked before."""
    return case is not None and case in _passed  # without a look at the set compilers put no guard on it


def note_passed(case: tuple | None) -> None:
    """Spare the next call like this one its checks."""
    if case is not None:
        if len(_passed) >= _MOST:
            _passed.clear()
        _passed.add(case)


def check_number(operator: str, name: str, value) -> None:
    """Refuse what is no number."""
    if not torch.compiler.is_compiling() and not isinstance(value, (int, float)):
        raise TypeError(f'{operator}: {name} must be a number, got {type(value).__name__}')


def check_tensor(operator: str, name: str, value, ndim: int | tuple[int, ...], layout: str) -> None:
    """Refuse what is no floating point tensor with one of the numbers of dimensions `ndim`."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f'{operator}: {name} must be a tensor {layout}, got {type(value).__name__}')
    if value.dtype not in FLOATS:
        raise TypeError(f'{operator}: {name} has dtype {value.dtype}; expected one of {[str(d) for d in FLOATS]}')
    if value.ndim not in (ndim if isinstance(ndim, tuple) else (ndim,)):
        raise ValueError(f'{operator}: {name} has shape {tuple(value.shape)}; expected {layout}')


def check_like(operator: str, name: str, value, sizes: dict[str, int], first: str, like: torch.Tensor) -> None:
    """Refuse a tensor whose sizes or device do not fit the operator's first argument.

    Args:
        operator, name: for the message.
        value: the argument.
        sizes: the expected shape as letter to size, in order.
        first: name of the argument that fixed the sizes.
        like: that argument.
    """
    layout = f'({", ".join(sizes)})'
    check_tensor(operator, name, value, len(sizes), layout)
    if tuple(value.shape) != tuple(sizes.values()):
        raise ValueError(
            f'{operator}: {name} has shape {tuple(value.shape)}; expected {layout} = {tuple(sizes.values())} '
            f'to fit {first} of shape {tuple(like.shape)}'
        )
    if value.device != like.device:
        raise ValueError(
            f'{operator}: {name} is on {value.device} but {first} is on {like.device}; move them to one device'
        )


def check_same_dtype(operator: str, first: str, like: torch.Tensor, **others: torch.Tensor) -> None:
    """Refuse tensors whose dtype differs from the first argument's."""
    for name, value in others.items():
        if value.dtype != like.dtype:
            raise TypeError(
                f'{operator}: {name} has dtype {value.dtype} but {first} has {like.dtype}; convert one of them'
            )


def check_parameter_dtype(operator: str, first: str, like: torch.Tensor, **parameters: torch.Tensor | None) -> None:
    """Refuse parameters that are neither float32 nor of the first argument's dtype.

    Under autocast activations are half precision and parameters float32, so both must be welcome together;
    float64 is all or nothing, else a gradient check would silently run in float32.
    """
    welcome = [like.dtype] if like.dtype in (torch.float32, torch.float64) else [like.dtype, torch.float32]
    for name, value in parameters.items():
        if value is not None and value.dtype not in welcome:
            expected = ' or '.join(map(str, welcome))
            raise TypeError(
                f'{operator}: {name} has dtype {value.dtype}; expected {expected} as {first} is {like.dtype}'
            )


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Dtype of state and result: float64 for float64, float32 for everything else."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
