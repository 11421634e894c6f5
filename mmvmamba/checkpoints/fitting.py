"""Parameters into a model, all of them or none; and whose parameters they are."""

import logging
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from .reading import CheckpointError, open_source, parameters
from .translating import architecture, identify, translate

_SHOWN = 20
_logger = logging.getLogger('mmvmamba')


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
    container, state_dict = parameters(open_source(source, trust), label)
    state_dict = {name.removeprefix('module.'): value for name, value in state_dict.items()}
    _refuse_non_finite(state_dict, label)
    backbone = model if hasattr(model, 'family') else getattr(model, 'backbone', None)
    if backbone is model:
        fitted, dropped, fresh = translate(state_dict, model)
    elif backbone is not None and hasattr(backbone, 'family'):
        own = {name.removeprefix('backbone.'): v for name, v in state_dict.items() if name.startswith('backbone.')}
        fitted, dropped, fresh = translate(own, backbone)
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


def _refuse_non_finite(state_dict, label) -> None:
    bad = [name for name, v in state_dict.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise CheckpointError(
            f'{label} has values that are NaN or infinite in {len(bad)} tensors: {bad[:_SHOWN]}; the training that '
            f'wrote it had diverged, or the file is damaged'
        )


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
    _, found = parameters(open_source(source, trust), label)
    state_dict = {name.removeprefix('module.').removeprefix('backbone.'): value for name, value in found.items()}
    family, arch, _ = identify(state_dict)
    if not arch:
        told = architecture(state_dict) or 'no backbone'
        raise CheckpointError(f'{label} holds no published architecture, as its shapes tell: {told}')
    return family.name, arch


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
