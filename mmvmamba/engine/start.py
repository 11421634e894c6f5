"""Where a training starts: from weights that the config names, or from scratch; found out before any work."""

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmvmamba import checkpoints

from .loading import pretrained

_WITHOUT = (
    '  without: --from-scratch trains from random weights (as --cfg-options model.backbone.init_cfg=None does), which '
    'falls far behind the published figures'
)


def settle(cfg: Config, from_scratch: bool = False, trust: bool = False) -> list[str]:
    """Have the weights of every `init_cfg` in a model's config at hand, or take these entries out.

    They are taken out on request, and where `load_from`, resumed or not, brings all parameters.

    Args:
        cfg: a config of which `load_from` and `resume` are final.
        from_scratch: train from random weights.
        trust: see `checkpoints.read_file`.

    Returns:
        What the log's first lines must say.

    Raises:
        FileNotFoundError, CheckpointError: files that are not there, cannot be had or are no checkpoints.
        ValueError: `from_scratch` beside a `load_from` that is not resumed.
    """
    if from_scratch and cfg.get('load_from') and not cfg.get('resume'):
        raise ValueError(f'--from-scratch contradicts load_from={cfg.load_from!r} of the config')
    if from_scratch or cfg.get('load_from'):
        _remove_pretrained(cfg.model)
    found = list(pretrained(cfg.model))
    for entry in found:
        _have(str(entry.get('checkpoint', '')), trust)
    if found or cfg.get('load_from'):
        return []
    why = '--from-scratch' if from_scratch else 'no init_cfg of the model names any'
    return [f'from scratch: training starts from random weights ({why})']


def _have(source: str, trust: bool) -> None:
    """Find a checkpoint on this machine, downloaded if need be, and read it; mmengine's own schemes are left to it."""
    scheme = source.partition('://')[0] if '://' in source else ''
    try:
        if source and scheme in ('', 'mmvmamba'):
            checkpoints.read_file(source, trust=trust)
        elif scheme in ('http', 'https'):
            checkpoints.locate(source)
    except checkpoints.WeightsUnavailable as error:
        raise checkpoints.WeightsUnavailable(f'{error}\n{_WITHOUT}') from error


def _remove_pretrained(node) -> None:
    """Take the entries that `pretrained` finds out of a model's config."""
    if isinstance(node, dict):
        entries = list(pretrained({'init_cfg': node.get('init_cfg')}))
        if entries:
            kept = node['init_cfg'] if isinstance(node['init_cfg'], (list, tuple)) else [node['init_cfg']]
            node['init_cfg'] = [entry for entry in kept if entry not in entries] or None
        for key, value in node.items():
            if key != 'init_cfg':
                _remove_pretrained(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _remove_pretrained(value)


def build_runner(cfg: Config, notes: list[str]) -> Runner:
    """The runner that a config asks for; the notes are the first lines of its log."""
    kind = RUNNERS.get(cfg.runner_type) if 'runner_type' in cfg else Runner

    class Announcing(kind):
        def _log_env(self, *arguments):
            for note in notes:
                self.logger.warning(note)
            super()._log_env(*arguments)

    Announcing.__name__ = Announcing.__qualname__ = kind.__name__
    return Announcing.from_cfg(cfg)
