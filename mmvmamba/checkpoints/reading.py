"""Checkpoint files into names and tensors, without running anything that is in them."""

import codecs
import contextlib
import contextvars
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.logging import print_log

CONTAINERS = ('model', 'state_dict_ema', 'state_dict', 'model_ema')
"""Entries of a file that may hold parameters; the first one counts. Families of backbones may say another order."""


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
    return parameters(read_file(path, trust=trust), path).state_dict


def class_names(path: str | Path, *, trust: bool = False) -> list[str] | None:
    """The names of the classes that a checkpoint's training wrote down, in the order of their labels.

    Args, Raises: as `read`; a file without parameters is refused here, too.

    Returns:
        Names; None where the file does not say them, as published files do not.
    """
    content = read_file(path, trust=trust)
    parameters(content, path)
    meta = content.get('meta')
    about = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    names = about.get('classes') if isinstance(about, Mapping) else None
    return list(names) if isinstance(names, (list, tuple)) else None


def read_file(path: str | Path, *, trust: bool = False) -> dict:
    """Read a whole checkpoint file, training state included. See `read`.

    Args:
        path: as for `read`.
        trust: unpickle whatever the file holds, which runs whatever code it carries. Otherwise such a file is refused.

    Returns:
        The file's content, tensors on the CPU.

    Raises:
        FileNotFoundError, CheckpointError: as `read`.
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
        return _read_safetensors(path)
    trust = trust or _trusting.get()
    try:
        if not trust and _is_program(path):
            raise pickle.UnpicklingError('a TorchScript program')
        with contextlib.nullcontext() if trust else _allowing(_harmless_types()):
            content = torch.load(path, map_location='cpu', weights_only=not trust)
    except pickle.UnpicklingError as error:
        if trust:
            raise CheckpointError(f'{path} is truncated or damaged ({_reason(error)}); get the file again') from error
        raise CheckpointError(
            f'{path} is damaged, or carries objects that are not parameters, which could run code and are refused: '
            f'{_reason(error)}. If you trust where the file comes from: trust=True, or --trust-checkpoint of the tools'
        ) from error
    except PermissionError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror}') from error
    except _DAMAGE as error:
        if trust and isinstance(error, (ImportError, AttributeError)):  # only a trusted file imports anything
            text = f'{path} needs something to be unpickled that is not installed here: {error}'
        else:
            text = f'{path} is truncated or damaged ({_reason(error)}); get the file again'
        raise CheckpointError(text) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{path} holds a {type(content).__name__}; expected a mapping of names to tensors')
    return dict(content)


def _read_safetensors(path: Path) -> dict:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(
            f'{path} is read by safetensors, which is not installed; pip install safetensors'
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f'{path} is truncated or damaged ({error}); get the file again') from error


_DAMAGE = (RuntimeError, EOFError, OSError, LookupError, TypeError, ValueError, AssertionError, struct.error)
_DAMAGE += (ImportError, AttributeError)


def _is_program(path: Path) -> bool:
    """Whether a file is TorchScript, which PyTorch before 2.6 runs even where only parameters are asked for."""
    with path.open('rb') as file:
        if file.read(4) != b'PK\x03\x04':  # by which torch.load tells
            return False
    return 'constants.pkl' in torch._C.PyTorchFileReader(str(path)).get_all_records()


def _reason(error: Exception) -> str:
    """What torch found, without the advice that it wraps around it."""
    lines = str(error.__context__ or error).strip().splitlines()
    return lines[0].partition('. Please use ')[0].rstrip('.') if lines else type(error).__name__


# Settings that published files carry beside their parameters. They are read into plain containers under the same names,
# so that nothing of the packages they come from is imported or run. The reader fills exact OrderedDicts only.
_SETTINGS = [
    type('CfgNode', (), {'__module__': 'yacs.config', '__new__': lambda cls: OrderedDict()}),
    type('Namespace', (), {'__module__': 'argparse'}),
]


def _harmless_types() -> list:
    """What published files and mmengine's training state consist of beside tensors and plain containers.

    NumPy 2 moved the two functions that its pickles name; each is known under both names whichever NumPy is here.
    """
    core = np.core if np.__version__.startswith('1.') else np._core
    arrays = [
        _renamed(function, f'numpy.{name}.multiarray.{function.__name__}')
        for function in (_reconstruct, core.multiarray.scalar)
        for name in ('core', '_core')
    ]
    codes = np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?O'
    arrays += [_ArrayType(), _renamed(_dtype, 'numpy.dtype'), *{type(np.dtype(code)) for code in codes}]
    try:
        from mmengine.logging.history_buffer import HistoryBuffer
    except ImportError:  # then nothing here can use it
        HistoryBuffer = type('HistoryBuffer', (), {'__module__': 'mmengine.logging.history_buffer'})

    def method(owner, name):
        """All that a history needs `getattr` for: its public methods."""
        if owner is not HistoryBuffer or name.startswith('_'):
            raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r})')
        return getattr(owner, name)

    # torch 2.4 does not know the last four, later ones do
    return [
        *_SETTINGS,
        *arrays,
        HistoryBuffer,
        _renamed(method, 'builtins.getattr'),
        slice,
        codecs.encode,
        bytearray,
        set,
        complex,
    ]


class _ArrayType:
    """What pickles get for `numpy.ndarray`: it names the type and makes none, as NumPy takes bytes for pointers."""

    def __init__(self):
        self.__module__, self.__name__, self.__qualname__ = 'numpy', 'ndarray', 'ndarray'

    def __eq__(self, other) -> bool:
        return other is np.ndarray or type(other) is type(self)

    def __hash__(self) -> int:
        return hash(np.ndarray)


def _reconstruct(subtype, *_) -> np.ndarray:
    """An array whose content follows."""
    if subtype != np.ndarray:
        raise pickle.UnpicklingError(f'an array of type {subtype!r}')
    return np.ndarray((0,), np.int8)


def _dtype(code, *_) -> np.dtype:
    """NumPy's own dtype of numbers or objects, which is constant.

    A copy, as pickles ask for, could be told that its objects are numbers: then bytes of the file become pointers. The
    price is that byte order is not told either; that of other machines is not supported.
    """
    found = np.dtype(code) if isinstance(code, str) else None
    if found is None or found.kind not in 'biufcO' or np.dtype(code) is not found:
        raise pickle.UnpicklingError(f'an array of dtype {code!r}')
    return found


def _renamed(function, path: str):
    """The function under the path by which a pickle looks for it."""

    def call(*arguments):
        return function(*arguments)

    call.__module__, _, call.__name__ = path.rpartition('.')
    call.__qualname__ = call.__name__
    return call


@contextlib.contextmanager
def _allowing(types: list):
    """Let torch.load(weights_only=True) build these types within, as `torch.serialization.safe_globals` of 2.5 does."""
    before = list(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals(types)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


_trusting = contextvars.ContextVar('trusting', default=False)


@contextlib.contextmanager
def guard(trust: bool = False):
    """Within, whatever mmengine reads from a file or a web address is read by `read_file`.

    mmengine's own loader unpickles anything, or refuses its own training state, depending on versions. Runners and
    inferencers inside behave alike on all of them:

        with checkpoints.guard():
            inferencer = DetInferencer('my_config.py', 'epoch_12.pth')

    Args:
        trust: of every file that is read inside, see `read_file`.
    """
    from mmengine.runner.checkpoint import CheckpointLoader

    def load_from_mmvmamba(filename, map_location=None):
        content = read_file(filename)
        usual = next((key for key in CONTAINERS if _holds_parameters(content.get(key))), None)
        if usual not in (None, 'state_dict') or 'state_dict' not in content:  # all that mmengine looks into
            entry = parameters(content, filename)
            if entry.name and entry.others:
                print_log(f'{filename}: taken is {entry.name!r}, not {entry.others}', logger='current')
            content['state_dict'] = entry.state_dict
        meta = content.get('meta')
        if not _trusting.get() and isinstance(meta, Mapping):
            # what old versions kept there; resuming runs it as Python, to compare the numbers of GPUs
            content['meta'] = {key: value for key, value in meta.items() if key != 'config'}
        return content

    schemes, token = CheckpointLoader._schemes, _trusting.set(trust)
    CheckpointLoader._schemes = dict(schemes)
    try:
        CheckpointLoader.register_scheme(('', 'http://', 'https://'), load_from_mmvmamba, force=True)
        with _allowing(_harmless_types()):
            yield
    finally:
        CheckpointLoader._schemes = schemes
        _trusting.reset(token)


RESOLVERS: dict[str, Callable[[str], Path]] = {}
"""Scheme of an address to what makes a local file of it; `download` registers itself."""


def locate(source: str | Path) -> Path:
    """The path of a file; one behind an address or a name of published weights is downloaded first."""
    scheme = str(source).partition('://')[0]
    if scheme in RESOLVERS and scheme != str(source):
        return RESOLVERS[scheme](str(source))
    return Path(os.path.expanduser(source))  # as mmengine's reader does


def open_source(source, trust: bool) -> dict:
    """The content of a file, a URL, or of what is a mapping already."""
    return dict(source) if isinstance(source, Mapping) else read_file(source, trust=trust)


class Entry(NamedTuple):
    """Parameters out of a file.

    Attributes:
        name: the entry of the file that holds them, '' for a bare state dict.
        state_dict: names to tensors.
        others: further entries that hold parameters.
    """

    name: str
    state_dict: dict[str, torch.Tensor]
    others: list[str]


def parameters(content: Mapping, label, container: str | None = None, order: tuple[str, ...] = CONTAINERS) -> Entry:
    """Find the parameters in the content of a file.

    Args:
        content: names to tensors, bare or in an entry.
        label: how messages call the content.
        container: the entry to take; None takes the first of `order` that is there.
        order: entries that are looked for.

    Raises:
        CheckpointError: no parameters, or not where they are expected.
    """
    found = [key for key, value in content.items() if _holds_parameters(value)]
    if container is None:
        if _holds_parameters(content):
            return Entry('', _copy(content), [])
        container = next((key for key in order if key in found), None)
    if container not in found:
        kinds = [f'{key}: {type(value).__name__}' for key, value in list(content.items())[:8]]
        if container is not None:
            raise CheckpointError(
                f'{label} has no parameters under container={container!r}; '
                + (f'expected one of {found}' if found else f'found {kinds}')
            )
        raise CheckpointError(
            f'{label} holds no parameters: expected names to tensors, bare or under one of {list(order)}, found {kinds}'
            + (f'. To take an entry of another name: container={found[0]!r}' if found else '')
        )
    taken = content[container]
    others = [key for key in found if any(content[key].get(name) is not value for name, value in taken.items())]
    return Entry(container, _copy(taken), others)


def _holds_parameters(value) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, torch.Tensor) for v in value.values())


def _copy(state_dict: Mapping) -> OrderedDict:
    """A copy that keeps the versions of the modules, by which some of the toolboxes' heads convert old names."""
    copied = OrderedDict(state_dict)
    if hasattr(state_dict, '_metadata'):
        copied._metadata = state_dict._metadata
    return copied
