"""Where a training starts: from weights that the config names, or from scratch; found out before any work."""

from mmengine.config import Config
from mmengine.registry import RUNNERS, WEIGHT_INITIALIZERS
from mmengine.runner import Runner

from mmvmamba import checkpoints
from mmvmamba.registry import is_type

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
    for entry, backbone in found:
        _have(entry, backbone, trust)
    if found or cfg.get('resume') or cfg.get('load_from'):
        return []
    why = '--from-scratch' if from_scratch else 'no init_cfg of the model names any'
    return [f'from scratch: training starts from random weights ({why})']


def _have(entry: dict, backbone: bool, trust: bool) -> None:
    """Find the checkpoint of an entry on this machine, downloaded if need be; mmengine's own schemes are left to it."""
    source = str(entry.get('checkpoint') or '')
    if not source:  # which the backbone refuses in its own words
        return
    scheme = source.partition('://')[0] if '://' in source else ''
    try:
        if backbone and scheme in ('', 'mmvmamba'):
            checkpoints.read_file(source, trust=trust or entry.get('trust', False))
        elif scheme in ('', 'mmvmamba', 'http', 'https') and not checkpoints.locate(source).exists():
            raise FileNotFoundError(f'checkpoint {source} of an init_cfg does not exist')
    except checkpoints.WeightsUnavailable as error:
        raise checkpoints.WeightsUnavailable(f'{error}\n{_WITHOUT}') from error


def _is_pretrained(entry) -> bool:
    return isinstance(entry, dict) and is_type(entry.get('type'), 'Pretrained', WEIGHT_INITIALIZERS)


def _entries(node: dict) -> list:
    init_cfg = node.get('init_cfg') or []
    return list(init_cfg) if isinstance(init_cfg, (list, tuple)) else [init_cfg]


def _modules(node):
    """Every dict of a model's config, itself included, and whether it is the model's backbone."""
    nodes = [(node, False)]
    while nodes:
        node, backbone = nodes.pop()
        if isinstance(node, dict):
            yield node, backbone
            nodes += [(value, key == 'backbone') for key, value in node.items() if key != 'init_cfg']
        elif isinstance(node, (list, tuple)):
            nodes += [(value, False) for value in node]


def pretrained(model):
    """Yield every `init_cfg` entry of the kind `Pretrained` in a model's config, and whether it is a backbone's."""
    for node, backbone in _modules(model):
        yield from ((entry, backbone) for entry in _entries(node) if _is_pretrained(entry))


def _remove_pretrained(model) -> None:
    for node, _ in _modules(model):
        entries = _entries(node)
        kept = [entry for entry in entries if not _is_pretrained(entry)]
        if len(kept) < len(entries):
            node['init_cfg'] = kept or None


def build_runner(cfg: Config, notes: list[str]) -> Runner:
    """The runner that a config asks for; the notes are the first lines of its log."""
    kind = cfg.get('runner_type', Runner)
    kind = RUNNERS.get(kind) if isinstance(kind, str) else kind
    if kind is None:
        return RUNNERS.build(cfg)  # which says what is wrong

    class Announcing(kind):
        def _log_env(self, *arguments):
            for note in notes:
                self.logger.warning(note)
            super()._log_env(*arguments)

    Announcing.__name__ = Announcing.__qualname__ = kind.__name__
    return Announcing.from_cfg(cfg)
