"""Which kernels a config needs: calls of our operators by its backbones at the sizes of its data, found without data.

Networks run on fake tensors, which have shapes and dtypes but no numbers; every call of an operator is noted. Whether
its Triton kernels work here is `mmvmamba.kernels.verify`'s business.
"""

from collections.abc import Iterator

import torch
from mmengine.config import Config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmvmamba.kernels.verify import probe
from mmvmamba.registry import MODELS

_SIZES = ('scale', 'scales', 'size', 'crop_size', 'img_scale')
_DIVISOR = 32
"""Images are padded to multiples of it."""


class _Noted(TorchDispatchMode):
    """Notes calls of our operators, by their registered names."""

    def __init__(self):
        super().__init__()
        self.calls: dict[probe.Call, None] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().partition('.')[0]
        if name.startswith('mmvmamba::'):
            operator = name.removeprefix('mmvmamba::')
            if operator in probe.LAYOUTS:
                self.calls[probe.Call.of(operator, 'forward', args[:-1])] = None
        return function(*args, **(kwargs or {}))


def backbones(cfg: Config) -> list[dict]:
    """The backbones' configs, wherever in the model they are, without their checkpoints."""
    found = []

    def look(node):
        if isinstance(node, (list, tuple)):
            for value in node:
                look(value)
        elif isinstance(node, dict):
            for key, value in node.items():
                if key == 'backbone' and isinstance(value, dict) and 'type' in value:
                    found.append({k: v for k, v in value.items() if k != 'init_cfg'})
                else:
                    look(value)

    look(cfg.get('model', {}))
    if not found:
        raise ValueError(f'{cfg.filename}: the model has no backbone; expected model.backbone')
    return found


def sizes(pipeline) -> set[tuple[int, int]]:
    """Heights and widths that a pipeline can produce: what it names, both ways round and square, at its ratios' ends.

    The kernels ask little of a size (see `kernels.verify.facts`), so that a few stand for all between them.
    """
    found = set()

    def add(value, ratios):
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)):
            for each in value:
                add(each, ratios)
            return
        pair = (value, value) if isinstance(value, (int, float)) else tuple(value)
        if len(pair) != 2 or not all(isinstance(side, (int, float)) and side > 0 for side in pair):
            return
        for ratio in ratios:
            long, short = (_DIVISOR * -(-int(ratio * side) // _DIVISOR) for side in (max(pair), min(pair)))
            found.update({(short, long), (long, short), (short, short)})

    def look(node):
        if isinstance(node, (list, tuple)):
            for value in node:
                look(value)
        elif isinstance(node, dict):
            ratios = (*(node.get('ratio_range') or ()), 1.0)
            for key, value in node.items():
                if key in _SIZES and value is not None:
                    add(value, ratios)
                else:
                    look(value)

    look(pipeline)
    return found


def shapes(cfg: Config) -> list[tuple[bool, int, int, int]]:
    """Whether it trains, batch, height and width of all that a config trains and tests with."""
    found = set()
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader') or {}
        pipeline = (loader.get('dataset') or {}, cfg.get('tta_pipeline') if split == 'test' else None)
        for height, width in sizes(pipeline):
            for batch in {1, loader.get('batch_size', 1)}:
                found.add((split == 'train', batch, height, width))
    if not found:
        raise ValueError(f'{cfg.filename}: no sizes of images in its pipelines; say --shapes, 2x800x1280 and the like')
    return sorted(found, reverse=True)


def dtypes(cfg: Config) -> list[torch.dtype]:
    """Float32 and what the config's mixed precision takes: bfloat16, as `tools/train.py --amp`, where it has none."""
    half = str((cfg.get('optim_wrapper') or {}).get('dtype') or 'bfloat16').removeprefix('torch.')
    return [torch.float32, getattr(torch, half if half in ('bfloat16', 'float16') else 'bfloat16')]


def calls(cfg: Config, shapes, dtypes, device: str) -> Iterator[list[probe.Call]]:
    """For every backbone, shape and dtype the calls of our operators, as if on `device`.

    Args:
        cfg: the config.
        shapes: as `shapes` returns them.
        dtypes: float32, or what autocast takes.
        device: 'cuda', which need not exist, or 'cpu'.
    """
    for backbone in backbones(cfg):
        network = MODELS.build(backbone)
        with FakeTensorMode(allow_non_fake_inputs=True):
            network.to_empty(device=device)
        for training, batch, height, width in shapes:
            for dtype in dtypes:
                yield _calls(network.train(training), (batch, height, width), dtype, device)


def _calls(network, shape, dtype, device) -> list[probe.Call]:
    batch, height, width = shape
    autocast = torch.autocast(device, dtype, enabled=dtype != torch.float32)
    fake = next(network.parameters()).fake_mode
    with fake, _Noted() as noted, autocast, torch.set_grad_enabled(network.training):
        network(torch.empty(batch, 3, height, width, device=device))
    found = list(noted.calls)
    return found + [call._replace(direction='backward') for call in found] if network.training else found
