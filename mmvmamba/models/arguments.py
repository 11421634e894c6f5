"""Checks of what users hand to a model: every message names the argument, what came and what was expected."""

import difflib
import operator
from collections.abc import Collection, Iterable, Mapping

import torch


def check_choice(model: str, name: str, value, choices: Collection[str]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in list(choices):  # by equality: what came may be a dict or a list
        raise ValueError(f'{model}: {name}={value!r} is unknown; expected one of {list(choices)}')


def check_fields(model: str, fields: Mapping, known: Mapping, where: str = '') -> None:
    """Refuse what is no field of the architecture table, with the nearest name; `where` it was given, for the message.

    Without `where` the fields are keyword arguments.
    """
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            hint = f'did you mean {near[0]!r}? ' if near else ''
            raise TypeError(
                f'{model}: {where}{field!r} is no {"" if where else "argument and no "}field of an architecture; '
                f'{hint}fields: {list(known)}'
            )


def architecture(model: str, arch, rows: Mapping[str, Mapping], default: str, fields: Mapping) -> dict:
    """Return the fields of an architecture.

    Args:
        model: for messages.
        arch: a row's name, or a dict of fields; those that it leaves out are those of the row `default`.
        rows: the table.
        default: name of a row.
        fields: replace single fields. `drop_path_rate` and `patch_size` are arguments of their own and no such fields.
    """
    if isinstance(arch, Mapping):
        check_fields(model, arch, rows[default], 'arch: ')
        spec = {**rows[default], **arch}
    else:
        if arch not in list(rows):
            raise ValueError(
                f'{model}: arch={arch!r} is unknown; expected one of {list(rows)}, or a dict of fields such as '
                f'{rows[default]}'
            )
        spec = dict(rows[arch])
    own = {field: value for field, value in spec.items() if field not in ('drop_path_rate', 'patch_size')}
    check_fields(model, fields, own)
    return {**spec, **fields}


def check_out_indices(model: str, out_indices, count: int) -> tuple[int, ...]:
    """Return the indices as a tuple from 0 on; refuse what is not an ascending choice out of `count`.

    Negative ones count from the end, as those of a list do.
    """
    several = isinstance(out_indices, Iterable) and not isinstance(out_indices, (str, Mapping))
    try:
        given = [operator.index(i) for i in (out_indices if several else (out_indices,))]
    except TypeError:  # no integers
        given = []
    indices = tuple(i + count if i < 0 else i for i in given)
    in_range = all(0 <= i < count for i in indices)
    if not indices or not in_range or list(indices) != sorted(set(indices)):
        raise ValueError(
            f'{model}: out_indices={out_indices!r}; expected ascending numbers from 0 to {count - 1}, or from -{count} '
            f'to -1 counted from the end'
        )
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
