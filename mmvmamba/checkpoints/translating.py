"""Published names into ours: what each family of backbones registers, and what all have in common."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import nn

from .reading import CONTAINERS, CheckpointError

Tensors = Mapping[str, torch.Tensor]


class Family(NamedTuple):
    """Backbones whose published files are alike.

    Attributes:
        name: as in the attribute `family` of the backbones.
        title: how messages call it.
        archs: the published architectures, each with its measures.
        measure: parameters (our names) to those measures that their shapes tell; None for another family's.
        translate: published parameters, and the model's, to parameters under the model's names.
        containers: entries of a file that may hold parameters, in the order in which the published readers look.
    """

    name: str
    title: str
    archs: Mapping[str, Mapping]
    measure: Callable[[Tensors], dict | None]
    translate: Callable[[Tensors, Tensors], dict[str, torch.Tensor]]
    containers: tuple[str, ...] = CONTAINERS


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Make a family known; its backbones carry its name in `family`."""
    _FAMILIES[family.name] = family


def family_of(model: nn.Module) -> Family | None:
    """The family of a backbone, or of a model's backbone; None for others'."""
    name = getattr(model, 'family', None) or getattr(getattr(model, 'backbone', None), 'family', None)
    return _FAMILIES.get(name)


def identify(state_dict: Tensors) -> tuple[Family | None, str, dict]:
    """The family of a backbone's parameters, its published architecture ('' if none), and its measures."""
    for family in _FAMILIES.values():
        measures = family.measure(family.translate(state_dict, {}))
        if measures is not None:
            fits = (arch for arch, row in family.archs.items() if measures.items() <= row.items())
            return family, next(fits, ''), measures
    return None, '', {}


def architecture(state_dict: Tensors) -> str:
    """Name the architecture of a backbone's parameters: a published one, or its measures; '' if none."""
    family, arch, measures = identify(state_dict)
    if arch:
        return f'{family.title} {arch}'
    return ', '.join(f'{key}={value}' for key, value in measures.items())


# what wraps a module without being part of it
_WRAPPERS = re.compile(
    r'^((module|_orig_mod|_fsdp_wrapped_module)\.)+|\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.'
)


def unwrapped(name: str) -> str:
    """A parameter's name without what DistributedDataParallel, torch.compile and the like put into it."""
    return _WRAPPERS.sub('', name)


def unwrap(state_dict: Tensors, label) -> dict[str, torch.Tensor]:
    """Parameters under `unwrapped` names.

    Raises:
        CheckpointError: two parameters that then have the same name.
    """
    result = {}
    if all(name == 'steps' or name.startswith('module.') for name in state_dict):  # torch's AveragedModel counts there
        state_dict = {name: value for name, value in state_dict.items() if name != 'steps'}
    for name, value in state_dict.items():
        if unwrapped(name) in result:
            raise CheckpointError(f'{label} has {unwrapped(name)} twice, the second time as {name}')
        result[unwrapped(name)] = value
    return result


def translate(state_dict: Tensors, family: Family, expected: Tensors):
    """Translate a backbone's parameters.

    Args:
        state_dict: names as published, or as a detector's with `backbone.` in front.
        family: of the backbone.
        expected: the backbone's own parameters.

    Returns:
        Names to tensors; names that are not used by right; names that may be missing by right.
    """
    dropped = []
    if any(name.startswith('backbone.') for name in state_dict):
        dropped += [name for name in state_dict if not name.startswith('backbone.')]
        state_dict = {k.removeprefix('backbone.'): v for k, v in state_dict.items() if k.startswith('backbone.')}
    fitted = {}
    for name, value in family.translate(state_dict, expected).items():
        if _surplus(name, expected):
            dropped.append(name)
            continue
        wanted = expected.get(name)
        if wanted is not None and value.ndim == wanted.ndim + 2 and value.shape[-2:] == (1, 1):
            value = value[..., 0, 0]
        fitted[name] = value
    fresh = []
    if not any(name.startswith('outnorm') for name in fitted):  # a classifier has none
        fresh = [name for name in expected if name.startswith('outnorm')]
    return fitted, dropped, fresh


AVERAGED = 'ema.module.'
"""What Lightning's averaging writes before the names of its copy, beside `backbone.` of the weights themselves."""

CLASSIFIER_HEAD = 'head.fc.weight'
"""By which mmpretrain's `ImageClassifier` with a `LinearClsHead` is known."""

_PUBLISHED_HEADS = ('classifier.head.', 'head.')


def as_classifier(state_dict: Tensors) -> tuple[dict[str, torch.Tensor], list[str]]:
    """A published classifier's parameters under the names of mmpretrain's `ImageClassifier` with a `LinearClsHead`.

    Names inside the backbone stay as published; the backbone translates them itself.

    Args:
        state_dict: names as published, bare or of Lightning, which has `backbone.` before them and may hold averaged
            weights again under `ema.module.`. Others are returned as they are.

    Returns:
        Names to tensors, and names of averaged weights that are left out.
    """
    bare = {k.removeprefix('backbone.'): v for k, v in state_dict.items() if k.startswith('backbone.')}
    averaged = [name for name in state_dict if name.startswith(AVERAGED)] if bare else []
    rest = [name for name in state_dict if not name.startswith(('backbone.', AVERAGED))]
    if not bare:
        bare = dict(state_dict)
    elif rest:  # a model with heads of its own, beside its backbone
        return dict(state_dict), []
    head = next((head for head in _PUBLISHED_HEADS if f'{head}weight' in bare), None)
    if head is None:
        return {name: value for name, value in state_dict.items() if name not in averaged}, averaged
    return {
        f'head.fc.{name.removeprefix(head)}' if name.startswith(head) else f'backbone.{name}': value
        for name, value in bare.items()
    }, averaged


def as_autoencoder(state_dict: Tensors, expected: Mapping) -> dict[str, torch.Tensor]:
    """A published masked autoencoder's parameters under the names of mmpretrain's `MAE`: its decoder is the neck.

    Args:
        state_dict: names as published, encoder and decoder side by side, bare or behind `backbone.`.
        expected: what the model has. Without names of a decoder in its neck nothing changes.
    """
    neck = {name.removeprefix('neck.') for name in expected if name.startswith('neck.decoder_')}
    neck |= {'mask_token'} if 'neck.mask_token' in expected else set()
    bare = {name: name.removeprefix('backbone.') for name in state_dict}
    return {f'neck.{bare[name]}' if bare[name] in neck else name: value for name, value in state_dict.items()}


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
