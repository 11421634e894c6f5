"""Published and own checkpoints into our models: read safely, translated by name, fitted strictly.

`load` is the door. What it understands is listed there; anything else that does not fit is an exception that lists
names and shapes and says whose weights they look like.
"""

import contextlib
import logging
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import torch
from torch import nn

_CONTAINERS = ('model_ema', 'state_dict_ema', 'state_dict', 'model')  # averaged weights first: they were published
_SHOWN = 20
_logger = logging.getLogger('mmvmamba')


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit the model."""


class Report(NamedTuple):
    """What `load` did.

    Attributes:
        source: where the parameters came from.
        container: the entry of the file that was taken, '' for a bare state dict.
        dropped: names in the file that the model has no use for.
        fresh: names in the model that the file has nothing for, and which keep their initial values.
    """

    source: str
    container: str
    dropped: list[str]
    fresh: list[str]

    def __str__(self) -> str:
        parts = [f'loaded {self.source}' + (f" (entry '{self.container}')" if self.container else '')]
        for what, names in (('not used', self.dropped), ('left at their initial values', self.fresh)):
            if names:
                shown = ', '.join(names[:_SHOWN]) + (f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else '')
                parts.append(f'{what}: {shown}')
        return '; '.join(parts)


def load(source, model: nn.Module, *, trust: bool = False) -> Report:
    """Load published or own weights into a backbone, a detector or a segmentor, strictly.

    Understood: a file, a URL or a dict; containers `model`, `model_ema`, `state_dict`, `state_dict_ema` (averaged
    weights win) or none; prefixes `module.` and `backbone.`; classifiers (their head is dropped, the output norms of
    the backbone stay fresh); detectors and segmentors (for a backbone, its part is taken); the old names of vanilla
    VMamba; linears stored as 1 x 1 convolutions; Vim's class token in the middle; RMSNorm weights for a LayerNorm;
    position embeddings of another grid; stages behind the model's last output.

    Args:
        source: path, URL, or names to tensors (in a container or not).
        model: built like what the weights come from.
        trust: see `read_file`.

    Returns:
        What was loaded, dropped, left alone; also logged.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a file that is damaged or carries code; values that are not finite; names or shapes that do
            not fit, up to 20 of each kind, with a guess at the architecture.
    """
    label = 'a dict' if isinstance(source, Mapping) else str(source)
    container, state_dict = _parameters(_content(source, trust), label)
    state_dict = {name.removeprefix('module.'): value for name, value in state_dict.items()}
    _refuse_non_finite(state_dict, label)
    backbone = model if hasattr(model, 'family') else getattr(model, 'backbone', None)
    if backbone is model:
        fitted, dropped, fresh = _fit_backbone(state_dict, model)
    elif backbone is not None and hasattr(backbone, 'family'):
        own = {name.removeprefix('backbone.'): v for name, v in state_dict.items() if name.startswith('backbone.')}
        fitted, dropped, fresh = _fit_backbone(own, backbone)
        rest = {name: value for name, value in state_dict.items() if not name.startswith('backbone.')}
        fitted = {**{f'backbone.{name}': value for name, value in fitted.items()}, **rest}
        dropped, fresh = ([f'backbone.{name}' for name in names] for names in (dropped, fresh))
        if dropped or fresh:
            raise CheckpointError(
                f'{label} does not fit {type(model).__name__}: not used {dropped[:_SHOWN]}, missing {fresh[:_SHOWN]}'
            )
    else:
        fitted, dropped, fresh = state_dict, [], []
    _require_match(model, fitted, label, set(fresh))
    try:
        model.load_state_dict(fitted, strict=False)  # `fresh` is all that may be missing, as checked
    except RuntimeError as error:
        raise CheckpointError(f'{label} does not fit {type(model).__name__}: {error}') from error
    report = Report(label, container, dropped, fresh)
    _logger.info('%s: %s', type(model).__name__, report)
    return report


def _content(source, trust: bool) -> dict:
    return dict(source) if isinstance(source, Mapping) else read_file(source, trust=trust)


def _local(source: str | Path) -> Path:
    """The path of a file, downloaded first if it is a URL."""
    if urlparse(str(source)).scheme not in ('http', 'https'):
        return Path(source)
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(str(source)).path).name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(str(source), str(path))
    return path


def _parameters(content: Mapping, label: str) -> tuple[str, dict[str, torch.Tensor]]:
    """The entry that holds parameters, and the parameters."""
    container = next((key for key in _CONTAINERS if isinstance(content.get(key), Mapping)), '')
    found = content[container] if container else content
    if not found or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise CheckpointError(
            f'{label} holds no parameters: expected names to tensors, bare or under one of {list(_CONTAINERS)}, '
            f'found {[f"{k}: {type(v).__name__}" for k, v in list(found.items())[:8]]}'
        )
    return container, dict(found)


def read(path: str | Path, *, trust: bool = False) -> dict[str, torch.Tensor]:
    """Read the parameters of a checkpoint, untranslated, without running anything that is in it.

    Args:
        path: a `.safetensors` file, or a file of `torch.save` with a state dict, bare or in a container; or the URL of
            one, which is downloaded once.
        trust: see `read_file`.

    Returns:
        Names to tensors, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a file that is truncated, damaged, carries code, or holds no parameters.
    """
    return _parameters(read_file(path, trust=trust), str(path))[1]


def read_file(path: str | Path, *, trust: bool = False) -> dict:
    """Read a whole checkpoint file, training state included. See `read`.

    Args:
        path: as for `read`.
        trust: unpickle whatever the file holds, which runs whatever code it carries. Otherwise such a file is refused.
    """
    path = _local(path)
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


def _refuse_non_finite(state_dict, label) -> None:
    bad = [name for name, v in state_dict.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise CheckpointError(
            f'{label} has values that are NaN or infinite in {len(bad)} tensors: {bad[:_SHOWN]}; the training that '
            f'wrote it had diverged, or the file is damaged'
        )


def _fit_backbone(state_dict, model) -> tuple[dict[str, torch.Tensor], list[str], list[str]]:
    """Translate a state dict to a backbone's names: the result, what was dropped, what is missing by right."""
    dropped = []
    if any(name.startswith('backbone.') for name in state_dict):
        dropped += [name for name in state_dict if not name.startswith('backbone.')]
        state_dict = {k.removeprefix('backbone.'): v for k, v in state_dict.items() if k.startswith('backbone.')}
    expected = model.state_dict()
    fitted = {}
    for name, value in _TRANSLATIONS[model.family](state_dict, expected).items():
        if _surplus(name, expected):
            dropped.append(name)
            continue
        wanted = expected.get(name)
        if wanted is not None and value.ndim == wanted.ndim + 2 and value.shape[-2:] == (1, 1):
            value = value[..., 0, 0]
        fitted[name] = value
    fresh = []
    if not any(name.startswith('outnorm') for name in state_dict):  # a classifier has none
        fresh = [name for name in expected if name.startswith('outnorm')]
    return fitted, dropped, fresh


_HEADS = ('classifier.', 'head.', 'norm.', 'norm_f.')


def _surplus(name: str, expected: Mapping) -> bool:
    """Whether a backbone has no place for a name by design: a classifier's head, or stages behind the last output."""
    if name in expected:
        return False
    if name.startswith(_HEADS) or name == 'cls_token':
        return True
    built = [int(match.group(1)) for match in map(re.compile(r'layers\.(\d+)\.').match, expected) if match]
    match = re.match(r'layers\.(\d+)\.(downsample\.)?', name)
    if match and (int(match.group(1)) > max(built) or (match.group(2) and int(match.group(1)) == max(built))):
        return True
    return bool(re.match(r'outnorm\d', name)) and any(key.startswith('outnorm') for key in expected)


_OLD_VMAMBA = (
    (re.compile(r'^patch_embed\.proj\.'), 'patch_embed.0.'),
    (re.compile(r'^patch_embed\.norm\.'), 'patch_embed.2.'),
    (re.compile(r'\.ln_1\.'), '.norm.'),
    (re.compile(r'\.self_attention\.'), '.op.'),
)


def _vmamba(state_dict, expected) -> dict[str, torch.Tensor]:
    """Old names of the vanilla model to today's."""
    renamed = {}
    for name, value in state_dict.items():
        for pattern, replacement in _OLD_VMAMBA:
            name = pattern.sub(replacement, name)
        renamed[name] = value
    return renamed


def _fastvim(state_dict, expected) -> dict[str, torch.Tensor]:
    """Classification models: RMSNorm has no bias, and Vim's class token sits in the middle of the positions."""
    translated = dict(state_dict)
    for name, value in expected.items():
        if re.fullmatch(r'layers\.\d+\.norm\.bias', name) and name not in translated:
            translated[name] = torch.zeros_like(value)
    if 'cls_token' in state_dict and 'pos_embed' in state_dict:
        position = state_dict['pos_embed']
        middle = (position.shape[1] - 1) // 2
        translated['pos_embed'] = torch.cat([position[:, :middle], position[:, middle + 1 :]], dim=1)
    return translated


_TRANSLATIONS = {'vmamba': _vmamba, 'fastvim': _fastvim}


def architecture(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Name the architecture of a backbone's parameters (our names): a published one, or its measures; '' if none."""
    shapes = {name: tuple(value.shape) for name, value in state_dict.items()}
    if 'patch_embed.proj.weight' in shapes and 'pos_embed' in shapes:
        from .models.backbones.fastvim import ARCHS

        channels, *_, patch = shapes['patch_embed.proj.weight']
        numbers = {int(m.group(1)) for m in map(re.compile(r'layers\.(\d+)\.').match, shapes) if m}
        measures = dict(embed_dims=channels, depth=len(numbers), patch_size=patch)
        return _named(measures, {f'FastVim {arch}': row for arch, row in ARCHS.items()})
    if 'layers.0.blocks.0.op.out_norm.weight' in shapes:
        from .models.backbones.vmamba import ARCHS

        channels = shapes['layers.0.blocks.0.norm.weight'][0]
        blocks = {m.groups() for m in map(re.compile(r'layers\.(\d+)\.blocks\.(\d+)\.').match, shapes) if m}
        stages = 1 + max(int(stage) for stage, _ in blocks)
        measures = dict(
            embed_dims=channels,
            depths=tuple(sum(int(stage) == i for stage, _ in blocks) for i in range(stages)),
            ssm_ratio=shapes['layers.0.blocks.0.op.out_norm.weight'][0] / channels,
            d_state=shapes['layers.0.blocks.0.op.A_logs'][1],
        )
        return _named(measures, {f'VMamba {arch}': row for arch, row in ARCHS.items()})
    return ''


def recognise(source, *, trust: bool = False) -> tuple[str, str]:
    """Tell the backbone in a checkpoint by its shapes.

    Args:
        source, trust: as for `load`.

    Returns:
        Family ('vmamba' or 'fastvim') and architecture.

    Raises:
        FileNotFoundError, CheckpointError: as `load`; also for shapes of no published architecture.
    """
    label = 'a dict' if isinstance(source, Mapping) else str(source)
    _, found = _parameters(_content(source, trust), label)
    state_dict = {name.removeprefix('module.').removeprefix('backbone.'): value for name, value in found.items()}
    family = 'fastvim' if 'pos_embed' in state_dict else 'vmamba'
    name = architecture(_TRANSLATIONS[family](state_dict, {}))
    if ' ' not in name or '=' in name:
        raise CheckpointError(f'{label} holds no published architecture, as its shapes tell: {name or "no backbone"}')
    return family, name.split()[1]


def _named(measures: dict, rows: Mapping[str, Mapping]) -> str:
    for name, row in rows.items():
        if all(row.get(key) == value for key, value in measures.items()):
            return name
    return ', '.join(f'{key}={value}' for key, value in measures.items())


def _guess(model, state_dict) -> str:
    """Whose weights they look like, if that differs from the model."""
    prefix = '' if hasattr(model, 'family') else 'backbone.'
    theirs, ours = (
        architecture({k.removeprefix(prefix): v for k, v in names.items() if k.startswith(prefix)})
        for names in (state_dict, model.state_dict())
    )
    return f' These look like {theirs} weights; this is {ours}.' if theirs and ours and theirs != ours else ''


# FastVim resizes the one and explains the other
_CHECKED_BY_MODEL = ('pos_embed', 'patch_embed.proj.weight')


def _require_match(model, state_dict, source, allowed) -> None:
    """Refuse parameters that are not exactly the model's, but for the names that are `allowed` to be missing."""
    expected = model.state_dict()
    problems = {
        'missing': [f'{k} {tuple(v.shape)}' for k, v in expected.items() if k not in state_dict and k not in allowed],
        'unexpected': [f'{k} {tuple(v.shape)}' for k, v in state_dict.items() if k not in expected],
        'of another shape': [
            f'{k}: checkpoint {tuple(state_dict[k].shape)}, model {tuple(v.shape)}'
            for k, v in expected.items()
            if k in state_dict and state_dict[k].shape != v.shape and not k.endswith(_CHECKED_BY_MODEL)
        ],
    }
    if not any(problems.values()):
        return
    lines = [f'{source} does not fit {type(model).__name__}: it was made by another architecture or config.']
    lines[0] += _guess(model, state_dict)
    for kind, names in problems.items():
        if names:
            lines.append(f'{len(names)} {kind}:')
            lines += [f'  {name}' for name in names[:_SHOWN]]
            if len(names) > _SHOWN:
                lines.append(f'  ... and {len(names) - _SHOWN} more')
    raise CheckpointError('\n'.join(lines))
