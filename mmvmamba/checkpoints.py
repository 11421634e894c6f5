"""Reading checkpoints safely, and fitting them to a model strictly."""

import contextlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

_CONTAINERS = ('state_dict', 'model')
_SHOWN = 20


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit the model."""


def read(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the parameters of a checkpoint without running anything that is in it.

    Args:
        path: a `.safetensors` file, or a file of `torch.save` with a state dict, bare or under 'state_dict' or 'model'.

    Returns:
        Names to tensors, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a file that is truncated, damaged, carries code, or holds no parameters.
    """
    content = read_file(path)
    for key in _CONTAINERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(
            f'{path} holds no parameters: expected names to tensors, bare or under one of {list(_CONTAINERS)}, '
            f'found {[f"{k}: {type(v).__name__}" for k, v in list(content.items())[:8]]}'
        )
    return dict(content)


def read_file(path: str | Path) -> dict:
    """Read a whole checkpoint file, training state included, refusing code. See `read`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    if path.suffix == '.safetensors':
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f'{path} is truncated or damaged ({error}); get the file again') from error
    try:
        with _mmengine_types():
            content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f'{path} is damaged, or carries objects that are not parameters, which could run code and are refused: '
            f'{reason}'
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError) as error:
        raise CheckpointError(
            f'{path} is truncated or damaged ({str(error).splitlines()[0]}); get the file again'
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{path} holds a {type(content).__name__}; expected a mapping of names to tensors')
    return dict(content)


def _mmengine_types():
    """Allow the few harmless types with which mmengine records training state."""
    try:
        from mmengine.runner.checkpoint import get_torch_safe_globals
    except ImportError:  # the original mmengine, whose own loader asks for no list
        return contextlib.nullcontext()
    return torch.serialization.safe_globals(get_torch_safe_globals())


def require_match(model: nn.Module, state_dict: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Refuse parameters that are not exactly the model's.

    Args:
        model: what they are for.
        state_dict: names to tensors.
        source: where they came from, for the message.

    Raises:
        CheckpointError: every missing, unexpected and misshapen name (up to 20 of each kind).
    """
    expected = model.state_dict()
    problems = {
        'missing': [f'{k} {tuple(v.shape)}' for k, v in expected.items() if k not in state_dict],
        'unexpected': [f'{k} {tuple(v.shape)}' for k, v in state_dict.items() if k not in expected],
        'of another shape': [
            f'{k}: checkpoint {tuple(state_dict[k].shape)}, model {tuple(v.shape)}'
            for k, v in expected.items()
            if k in state_dict and state_dict[k].shape != v.shape
        ],
    }
    if not any(problems.values()):
        return
    lines = [f'{source} does not fit {type(model).__name__}: it was made by another architecture or config.']
    for kind, names in problems.items():
        if names:
            lines.append(f'{len(names)} {kind}:')
            lines += [f'  {name}' for name in names[:_SHOWN]]
            if len(names) > _SHOWN:
                lines.append(f'  ... and {len(names) - _SHOWN} more')
    raise CheckpointError('\n'.join(lines))
