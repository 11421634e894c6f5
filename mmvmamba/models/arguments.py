"""Checks of what users hand to a model: every message names the argument, what came and what was expected."""

import difflib
from collections.abc import Collection, Mapping

import torch


def check_choice(model: str, name: str, value, choices: Collection[str]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f'{model}: {name}={value!r} is unknown; expected one of {list(choices)}')


def check_fields(model: str, fields: Mapping, known: Mapping) -> None:
    """Refuse keyword arguments that are no field of the architecture table, with the nearest name."""
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            hint = f'did you mean {near[0]!r}? ' if near else ''
            raise TypeError(
                f'{model}: {field!r} is no argument and no field of an architecture; {hint}fields: {list(known)}'
            )


def check_out_indices(model: str, out_indices, count: int) -> tuple[int, ...]:
    """Return the indices as a tuple; refuse what is not an ascending choice out of `count`."""
    indices = tuple(out_indices) if isinstance(out_indices, (list, tuple)) else (out_indices,)
    valid = indices and all(isinstance(i, int) and 0 <= i < count for i in indices)
    if not valid or list(indices) != sorted(set(indices)):
        raise ValueError(f'{model}: out_indices={out_indices!r}; expected ascending numbers from 0 to {count - 1}')
    return indices


def check_image(model: str, x: torch.Tensor, in_channels: int, smallest: int) -> None:
    """Refuse what is not a batch of images with at least `smallest` pixels a side."""
    shape = tuple(x.shape)
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(f'{model}: input has shape {shape}; expected (B, {in_channels}, H, W)')
    if min(x.shape[2:]) < smallest:
        raise ValueError(
            f'{model}: input of {shape[2]} x {shape[3]} pixels is too small; expected at least {smallest} x {smallest}'
        )
    if not x.is_floating_point():
        raise TypeError(f'{model}: input has dtype {x.dtype}; expected floating point (normalise the image first)')
