"""Checkpoint files into names and tensors, without running anything that is in them."""

import contextlib
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

_CONTAINERS = ('model_ema', 'state_dict_ema', 'state_dict', 'model')  # averaged weights first: they were published


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit the model."""


def read(path: str | Path, *, trust: bool = False) -> dict[str, torch.Tensor]:
    """Read the parameters of a checkpoint, untranslated, without running anything that is in it.

    Args:
        path: a `.safetensors` file, or a file of `torch.save` with a state dict, bare or in a container; or the URL of
            one or `mmvmamba://NAME`, which is downloaded once.
        trust: see `read_file`.

    Returns:
        Names to tensors, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a file that is truncated, damaged, carries code, or holds no parameters.
    """
    return parameters(read_file(path, trust=trust), str(path))[1]


def read_file(path: str | Path, *, trust: bool = False) -> dict:
    """Read a whole checkpoint file, training state included. See `read`.

    Args:
        path: as for `read`.
        trust: unpickle whatever the file holds, which runs whatever code it carries. Otherwise such a file is refused.
    """
    path = locate(path)
    if path.is_dir():
        raise CheckpointError(
            f'{path} is a folder; expected one file. A training by DeepSpeed leaves such folders: '
            f'python {path.parent}/zero_to_fp32.py {path.parent} OUT -t {path.name} writes its parameters into one'
        )
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
        with contextlib.nullcontext() if trust else _harmless_types():
            content = torch.load(path, map_location='cpu', weights_only=not trust)
    except pickle.UnpicklingError as error:
        if trust:
            raise CheckpointError(f'{path} is truncated or damaged ({_reason(error)}); get the file again') from error
        raise CheckpointError(
            f'{path} is damaged, or carries objects that are not parameters, which could run code and are refused: '
            f'{_reason(error)}. If you trust where the file comes from: trust=True, or --trust-checkpoint of the tools'
        ) from error
    except (ImportError, AttributeError) as error:  # only a trusted file imports anything
        raise CheckpointError(f'{path} needs something to be unpickled that is not installed here: {error}') from error
    except (RuntimeError, EOFError, OSError, KeyError) as error:
        raise CheckpointError(f'{path} is truncated or damaged ({_reason(error)}); get the file again') from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{path} holds a {type(content).__name__}; expected a mapping of names to tensors')
    return dict(content)


def _reason(error: Exception) -> str:
    """What torch found, without the advice that it wraps around it."""
    lines = str(error.__context__ or error).strip().splitlines()
    return lines[0].rstrip('.') if lines else type(error).__name__


# Settings that published files carry beside their parameters. They are read into plain containers under the same names,
# so that nothing of the packages they come from is imported or run. The reader fills exact OrderedDicts only.
_SETTINGS = [
    type('CfgNode', (), {'__module__': 'yacs.config', '__new__': lambda cls: OrderedDict()}),
    type('Namespace', (), {'__module__': 'argparse'}),
]


def _harmless_types():
    """Allow settings, and the few harmless types with which mmengine records training state."""
    if not hasattr(torch.serialization, 'safe_globals'):  # torch 2.4: parameters alone
        return contextlib.nullcontext()
    try:
        from mmengine.runner.checkpoint import get_torch_safe_globals
    except ImportError:  # the original mmengine, whose own loader asks for no list
        return torch.serialization.safe_globals(_SETTINGS)
    return torch.serialization.safe_globals([*get_torch_safe_globals(), *_SETTINGS])


RESOLVERS: dict[str, Callable[[str], Path]] = {}
"""Scheme of an address to what makes a local file of it; `download` registers itself."""


def locate(source: str | Path) -> Path:
    """The path of a file; one behind an address or a name of published weights is downloaded first."""
    scheme = str(source).partition('://')[0]
    return RESOLVERS[scheme](str(source)) if scheme in RESOLVERS else Path(source)


def open_source(source, trust: bool) -> dict:
    """The content of a file, a URL, or of what is a mapping already."""
    return dict(source) if isinstance(source, Mapping) else read_file(source, trust=trust)


def parameters(content: Mapping, label: str) -> tuple[str, dict[str, torch.Tensor]]:
    """The entry that holds parameters, and the parameters."""
    container = next((key for key in _CONTAINERS if isinstance(content.get(key), Mapping)), '')
    found = content[container] if container else content
    if not found or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise CheckpointError(
            f'{label} holds no parameters: expected names to tensors, bare or under one of {list(_CONTAINERS)}, '
            f'found {[f"{k}: {type(v).__name__}" for k, v in list(found.items())[:8]]}'
        )
    return container, dict(found)
