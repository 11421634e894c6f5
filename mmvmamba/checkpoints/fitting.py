"""Parameters into a model, all of them or none; and whose parameters they are."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from .reading import CheckpointError, open_source, parameters
from .translating import (
    AVERAGED,
    CLASSIFIER_HEAD,
    Tensors,
    architecture,
    as_autoencoder,
    as_classifier,
    family_of,
    identify,
    translate,
    unwrap,
    unwrapped,
)

_SHOWN = 20
_logger = logging.getLogger('mmvmamba')


class Report(NamedTuple):
    """What `load` did.

    Attributes:
        source: where the parameters came from.
        container: the entry of the file that was taken, '' for a bare state dict.
        dropped: names in the file that the model has no use for.
        fresh: names in the model that the file has nothing for, and which keep their initial values.
        others: further entries of the file that hold parameters.
    """

    source: str
    container: str
    dropped: list[str]
    fresh: list[str]
    others: list[str]

    def __str__(self) -> str:
        entry = f"entry '{self.container}'" if self.container else ''
        if self.others:
            entry += f'; it also has {self.others}, which container={self.others[0]!r} would take'
        parts = [f'loaded {self.source}' + (f' ({entry})' if entry else '')]
        averaged = [name for name in self.dropped if name.startswith(AVERAGED)]
        if averaged:
            parts.append(f'not used: {len(averaged)} averaged tensors, which prefix={AVERAGED!r} would take')
        dropped = [name for name in self.dropped if name not in averaged]
        for what, names in (('not used', dropped), ('left at their initial values', self.fresh)):
            if names:
                parts.append(f'{what}: {_shortened(names)}')
        return '; '.join(parts)


def _shortened(names: list[str]) -> str:
    if len(names) <= _SHOWN:
        return ', '.join(names)
    parts = Counter(name.split('.')[0] for name in names)
    return f'{len(names)} tensors, ' + ', '.join(f'{count} of {part}' for part, count in parts.items())


def load(
    source,
    model: nn.Module,
    *,
    trust: bool = False,
    container: str | None = None,
    prefix: str | None = None,
    fresh_heads: bool = False,
) -> Report:
    """Load published or own weights into a backbone, a classifier, a detector or a segmentor, strictly.

    Understood: a file, a URL or a dict; containers `model`, `model_ema`, `state_dict`, `state_dict_ema` or none, of
    which the one counts that the family's published readers take; what wrappers put into names (`module.`,
    `_orig_mod.`); published classifiers and mmpretrain's (whole into mmpretrain's `ImageClassifier`; into a backbone
    without their head and, if it has several output norms, without theirs, and those stay fresh); published masked
    autoencoders (whole into mmpretrain's `MAE`, their encoder into a backbone); detectors and segmentors (for a
    backbone, its part is taken); the old names of vanilla VMamba; linears stored as 1 x 1 convolutions; Vim's class
    token in the middle; RMSNorm weights for a LayerNorm; position embeddings of another grid; stages behind the model's
    last output.

    Args:
        source: path, URL, or names to tensors (in a container or not).
        model: built like what the weights come from.
        trust: see `read_file`.
        container: the entry of the file to take, if not the usual one.
        prefix: of the names to take, such as 'encoder.'; it is removed from them.
        fresh_heads: leave tensors of heads fresh whose shape differs as with another number of classes.

    Returns:
        What was loaded, dropped, left alone; also logged.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a file that is damaged or carries code; values that are not finite; names or shapes that do
            not fit, up to 20 of each kind, with a guess at the architecture.
    """
    label = 'a dict' if isinstance(source, Mapping) else str(source)
    content = open_source(source, trust)
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    fitted, report = fit(content, model, label, container=container, prefix=prefix, fresh_heads=fresh_heads)
    try:
        model.load_state_dict(fitted, strict=False)  # `fresh` is all that may be missing, as checked
    except RuntimeError as error:
        raise CheckpointError(f'{label} does not fit {type(model).__name__}: {error}') from error
    _logger.info('%s: %s', type(model).__name__, report)
    return report


def fit(
    content: Mapping,
    model: nn.Module,
    label: str,
    *,
    container: str | None = None,
    prefix: str | None = None,
    fresh_heads: bool = False,
    backbone_alone: bool = False,
) -> tuple[dict[str, torch.Tensor], Report]:
    """Parameters for a model's `load_state_dict` out of a file's content, without loading them.

    Args:
        content: names to tensors, in a container or not.
        model: for which they are.
        label: how messages call the content.
        container, prefix, fresh_heads: see `load`.
        backbone_alone: whether a detector or segmentor may take a backbone, a classifier's say, and stay fresh else.

    Returns:
        Parameters under the model's names, and what `load` reports.

    Raises:
        CheckpointError: see `load`.
    """
    family = family_of(model)
    entry = parameters(content, label, container, *([family.containers] if family else []))
    given = unwrap(_under(prefix, entry.state_dict, label), label)
    _refuse_non_finite(given, label)
    names = {unwrapped(name): name for name in model.state_dict()}
    expected = dict(zip(names, model.state_dict().values(), strict=True))
    if family is None:
        fitted, dropped, fresh = given, [], []
    elif hasattr(model, 'family'):
        fitted, dropped, fresh = translate(given, family, expected)
    else:
        fitted, dropped, fresh = _fit_whole(given, family, expected, backbone_alone, label, type(model).__name__)
    problems = _compare(expected, fitted, set(fresh))
    heads = _differing_heads(expected, fitted)
    if fresh_heads and heads:
        fitted = {name: value for name, value in fitted.items() if name not in heads}
        fresh = [*fresh, *heads]
        problems = _compare(expected, fitted, set(fresh))
    if any(problems.values()):
        raise CheckpointError(_explain(problems, heads, given, fitted, model, expected, label))
    result = OrderedDict((names[name], value) for name, value in fitted.items())
    if hasattr(entry.state_dict, '_metadata'):
        result._metadata = entry.state_dict._metadata
    return result, Report(label, entry.name, dropped, fresh, entry.others)


def fit_part(state_dict: Tensors, backbone: nn.Module, label: str) -> dict[str, torch.Tensor]:
    """A backbone's part of a state dict under the backbone's names, checked; names of no use stay as they are.

    Raises:
        CheckpointError: names or shapes that do not fit.
    """
    expected, family = backbone.state_dict(), family_of(backbone)
    if family is None:
        raise TypeError(f'{type(backbone).__name__} has no family that is registered with mmvmamba.checkpoints')
    fitted, dropped, fresh = translate(state_dict, family, expected)
    problems = _compare(expected, fitted, set(fresh))
    if any(problems.values()):
        raise CheckpointError(_explain(problems, [], state_dict, fitted, backbone, expected, label))
    return fitted | {name: state_dict[name] for name in dropped if name in state_dict}


def recognise(source, *, trust: bool = False, container: str | None = None) -> tuple[str, str]:
    """Tell the backbone in a checkpoint by its shapes.

    Args:
        source, trust, container: as for `load`.

    Returns:
        Family ('vmamba' or 'fastvim') and architecture.

    Raises:
        FileNotFoundError, CheckpointError: as `load`; also for shapes of no published architecture.
    """
    label = 'a dict' if isinstance(source, Mapping) else str(source)
    given = unwrap(parameters(open_source(source, trust), label, container).state_dict, label)
    state_dict = {name.removeprefix('backbone.'): value for name, value in given.items()}
    family, arch, _ = identify(state_dict)
    if not arch:
        told = architecture(state_dict) or 'no backbone'
        raise CheckpointError(f'{label} holds no published architecture, as its shapes tell: {told}')
    return family.name, arch


def _under(prefix: str | None, state_dict: Tensors, label) -> Tensors:
    if not prefix:
        return state_dict
    prefix = f'{prefix.removesuffix(".")}.'
    found = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    if not found:
        begins = list(dict.fromkeys(name.split('.')[0] for name in state_dict))[:_SHOWN]
        raise CheckpointError(f'{label} has no names with prefix={prefix!r}; its names begin with {begins}')
    return found


def _refuse_non_finite(state_dict, label) -> None:
    bad = [name for name, v in state_dict.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise CheckpointError(
            f'{label} has values that are NaN or infinite in {len(bad)} tensors: {bad[:_SHOWN]}; the training that '
            f'wrote it had diverged, or the file is damaged'
        )


def _fit_whole(given, family, expected, backbone_alone, label, title):
    """As `translate`, for a model that has the backbone under `backbone.`."""
    averaged = []
    if CLASSIFIER_HEAD in expected:
        given, averaged = as_classifier(given)
    given = as_autoencoder(given, expected)
    own_expected = {k.removeprefix('backbone.'): v for k, v in expected.items() if k.startswith('backbone.')}
    rest_expected = [name for name in expected if not name.startswith('backbone.')]
    own = {name.removeprefix('backbone.'): v for name, v in given.items() if name.startswith('backbone.')}
    rest = {name: value for name, value in given.items() if not name.startswith('backbone.')}
    bare = not own and any(name in own_expected for name in translate(rest, family, own_expected)[0])
    if bare:  # a backbone's file, or a masked autoencoder's
        own = {name: value for name, value in rest.items() if name not in expected}
        rest = {name: value for name, value in rest.items() if name in expected}
    fitted, dropped, fresh = translate(own, family, own_expected)
    fitted = {f'backbone.{name}': value for name, value in fitted.items()}
    fresh = [f'backbone.{name}' for name in fresh]
    dropped = [name if bare else f'backbone.{name}' for name in dropped]
    if own and rest_expected and not any(name in expected for name in rest):
        if not backbone_alone:
            parts = list(dict.fromkeys(name.split('.')[0] for name in rest_expected))
            raise CheckpointError(
                f'{label} does not fit {title}: it holds a backbone alone ({architecture(own)}), as of a classifier, '
                f'and nothing for {parts}. To train from it: init_cfg of the backbone, or load_from'
            )
        return fitted, [*dropped, *rest, *averaged], [*fresh, *rest_expected]
    if dropped:
        raise CheckpointError(f'{label} does not fit {title}, which has no place for {dropped[:_SHOWN]}')
    return fitted | rest, averaged, []


# FastVim resizes the one and explains the other
_CHECKED_BY_MODEL = ('pos_embed', 'patch_embed.proj.weight')


def _compare(expected: Tensors, fitted: Tensors, allowed: set[str]) -> dict[str, list[str]]:
    """What keeps parameters from being exactly the model's, but for names that are `allowed` to be missing."""
    return {
        'missing': [
            f'{k} {tuple(v.shape)}'
            for k, v in expected.items()
            # older files do not count what no layer of ours uses
            if k not in fitted and k not in allowed and not k.endswith('.num_batches_tracked')
        ],
        'unexpected': [f'{k} {tuple(v.shape)}' for k, v in fitted.items() if k not in expected],
        'of another shape': [
            f'{k}: checkpoint {tuple(fitted[k].shape)}, model {tuple(v.shape)}'
            for k, v in expected.items()
            if k in fitted and fitted[k].shape != v.shape and not k.endswith(_CHECKED_BY_MODEL)
        ],
    }


def _differing_heads(expected: Tensors, fitted: Tensors) -> list[str]:
    """Tensors behind backbone and neck that differ in one side, as those do which depend on the number of classes."""
    if not any(name.startswith('backbone.') for name in expected):
        return []
    return [
        name
        for name, value in expected.items()
        if name in fitted
        and not name.startswith(('backbone.', 'neck.'))
        and value.ndim == fitted[name].ndim
        and sum(ours != theirs for ours, theirs in zip(value.shape, fitted[name].shape, strict=True)) == 1
    ]


def _explain(problems, heads, given, fitted, model, expected, label) -> str:
    """The message about parameters that are not the model's: the likeliest reason, then the names."""
    shapes = problems['of another shape']
    only_heads = heads and not problems['missing'] and not problems['unexpected'] and len(heads) == len(shapes)
    prefix = _foreign_prefix(given, model, expected) if problems['missing'] else ''
    lines = [f'{label} does not fit {type(model).__name__}: ']
    if only_heads:
        lines[0] += 'its heads have other shapes, as with another number of classes.'
    elif prefix:
        lines[0] += (
            f'its names differ by a prefix, {prefix!r}. Remove it by prefix={prefix!r} of checkpoints.load or init_cfg.'
        )
    else:
        lines[0] += f'it was made by another architecture or config.{_guess(given, expected)}'
    for kind, names in problems.items():
        if names:
            lines.append(f'{len(names)} {kind}:')
            lines += [f'  {name}' for name in names[:_SHOWN]]
            if len(names) > _SHOWN:
                lines.append(f'  ... and {len(names) - _SHOWN} more')
    if only_heads:
        lines.append(
            'To fine-tune from it, with backbone and neck loaded and these tensors fresh: load_from and --fresh-heads '
            'of tools/train.py, or fresh_heads=True of checkpoints.load'
        )
    return '\n'.join(lines)


def _foreign_prefix(given: Tensors, model: nn.Module, expected: Tensors) -> str:
    """What stands before the names of most parameters that the model misses, '' if that is not the reason."""
    family = family_of(model)
    candidates = Counter()
    for name in given:
        parts = name.split('.')
        candidates.update('.'.join(parts[:i]) + '.' for i in range(1, min(4, len(parts))))
    for prefix, count in candidates.most_common():
        if 2 * count < len(expected):
            return ''
        stripped = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
        if hasattr(model, 'family'):
            stripped = translate(stripped, family, expected)[0]
        if 2 * sum(name in expected for name in stripped) >= len(expected):
            return prefix
    return ''


def _guess(given, expected) -> str:
    """Whose weights they look like, if that differs from the model."""
    theirs, ours = (
        architecture({name.removeprefix('backbone.'): value for name, value in names.items()})
        for names in (given, expected)
    )
    return f' These look like {theirs} weights; this is {ours}.' if theirs and ours and theirs != ours else ''
