"""The papers' tables of classifiers on this machine: over image sizes, over route patterns, over initialisations."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from mmvmamba.models import VMamba

from . import drawing, published
from .benchmark import measured
from .flops import complexity
from .timing import Times

_CLASSES = 1000
_VIM = ', every token scanned (Vim)'
_HOUSEHOLD = 'VMamba-T s1l8'  # the paper's ablations are of it


class Classifier(nn.Module):
    """A backbone's last map, averaged, and a linear layer: the logits `(B, classes)` of images `(B, C, H, W)`."""

    def __init__(self, backbone: nn.Module, classes: int = _CLASSES):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features[-1], classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.head(F.adaptive_avg_pool2d(self.backbone(image)[-1], 1).flatten(1))


def _rival(type_: str, channels: int, pooled: bool = True, **backbone) -> dict:
    """Config of one of mmpretrain's classifiers."""
    head = dict(
        type='LinearClsHead' if pooled else 'VisionTransformerClsHead', num_classes=_CLASSES, in_channels=channels
    )
    neck = dict(type='GlobalAveragePooling') if type_ != 'ConvNeXt' and pooled else None
    return dict(type='ImageClassifier', backbone=dict(type=type_, **backbone), neck=neck, head=head)


RIVALS: dict[str, Callable[[int], dict]] = {
    # the paper sets the window so, which only sizes that 32 divides allow
    'Swin-T': lambda side: _rival('SwinTransformer', 768, arch='tiny', img_size=side, window_size=side // 32),
    'ConvNeXt-T': lambda side: _rival('ConvNeXt', 768, arch='tiny'),
    'DeiT-S': lambda side: _rival(
        'VisionTransformer', 384, pooled=False, arch='deit-small', img_size=side, patch_size=16
    ),
    'ResNet-50': lambda side: _rival('ResNet', 2048, depth=50),
}
"""mmpretrain's classifiers that the papers compare with: name to config for square images of a side."""


def _build(model: dict) -> nn.Module:
    from mmengine.registry import MODELS, DefaultScope

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(copy.deepcopy(model))


def _of_side(model: dict, side: int) -> dict:
    """A classifier's config for square images of a side: FastVim has position embeddings."""
    model = copy.deepcopy(model)
    model['backbone'].pop('init_cfg', None)
    if str(model['backbone']['type']).rpartition('.')[2] == 'FastVim':
        model['backbone']['img_size'] = side
    return model


def _ours(configs: list[str], vim: bool) -> dict[str, tuple[dict, str | None]]:
    """Names to model configs and what the papers call them; with `vim` every FastVim's counterpart that scans all."""
    from mmvmamba.engine import launch

    found = {}
    for path in configs:
        cfg = launch.load_config(path)
        if launch.task_of(cfg) != 'mmpretrain':
            raise ValueError(f'scale: {path} is no classifier; `benchmark.py model` measures backbones of other tasks')
        model, name = cfg.model.to_dict(), Path(path).stem
        name = path if name in found else name  # a work folder's config has the name of the one it was made from
        found[name] = model, published.model_name(model['backbone'])
        if vim and str(model['backbone']['type']).rpartition('.')[2] == 'FastVim':
            plain = copy.deepcopy(model)
            plain['backbone']['pool'] = None
            found[name + _VIM] = plain, None
    return found


def infer(model: nn.Module, image: torch.Tensor) -> None:
    """One inference in float32."""
    model.eval()
    with torch.no_grad():
        model(image)


def train(model: nn.Module, image: torch.Tensor, amp: bool = False) -> None:
    """Forward, cross-entropy and backward as the paper times training: no optimizer step, gradients not zeroed."""
    model.train()
    with torch.autocast(image.device.type, torch.bfloat16, enabled=amp):
        logits = model(image)
        logits = logits[-1] if isinstance(logits, (list, tuple)) else logits
    F.cross_entropy(logits.float(), torch.zeros(len(image), dtype=torch.long, device=image.device)).backward()


def _row(model: nn.Module | str, image: torch.Tensor, speeds: dict) -> dict:
    """Figures of one model on this machine, and why some are missing."""
    figures = dict.fromkeys(('parameters M', 'GFLOPs', 'images/s', 'training images/s', 'peak MiB'), '')
    if isinstance(model, str):
        return figures | {'note': model}
    counted = complexity(model, image[:1])
    billions = counted.flops / 1e9
    figures['GFLOPs'] = f'{billions:.2f}' if billions >= 0.1 else f'{billions:.2g}'
    figures['parameters M'] = f'{counted.parameters / 1e6:.2f}'
    notes = []
    for key, (times, memory) in speeds.items():
        if isinstance(times, Times):
            figures[key] = f'{len(image) / times.p50:.2f}'
            figures['peak MiB'] = figures['peak MiB'] or f'{memory / 2**20:.0f}'
        else:
            notes.append(times)
    return figures | {'note': '; '.join(dict.fromkeys(notes))}


def _figures(models: dict, side: int, batch: int, repeat: int, training: bool, amp: bool) -> dict[str, dict]:
    """FLOPs, speeds and memory of models on square images, in one interleaved run; a model that failed is a reason."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    image = torch.randn(batch, 3, side, side)
    speeds = {name: {} for name in models}
    built = {name: model.to(device) for name, model in models.items() if isinstance(model, nn.Module)}
    ways = {'images/s': infer} | ({'training images/s': functools.partial(train, amp=amp)} if training else {})
    for key, way in ways.items():
        candidates = {name: functools.partial(way, model, image.to(device)) for name, model in built.items()}
        for name, found in measured(candidates, repeat, device).items():
            speeds[name][key] = found
        for model in built.values():
            model.zero_grad()
    for model in built.values():
        model.cpu()
    return {name: _row(model, image, speeds[name]) for name, model in models.items()}


def scale(
    configs: list[str],
    sides: list[int],
    batch: int,
    rivals: list[str],
    vim: bool,
    training: bool,
    amp: bool,
    repeat: int,
    plot: Path,
) -> list[dict]:
    """FLOPs, throughput, training throughput and peak memory of classifiers over image sizes, published ones beside.

    Args:
        configs: config files of classifiers.
        sides: of the square images, in pixels.
        batch: images at a time.
        rivals: names of `RIVALS`.
        vim: beside every FastVim the network that scans every token.
        training: time training, too.
        amp: train under autocast to bfloat16.
        repeat: measured rounds.
        plot: picture to write.

    Returns:
        A row per size and model; one that cannot run says why.

    Raises:
        ValueError: a config of another task.
    """
    wanted = _ours(configs, vim)
    rows = []
    for side in sides:
        models: dict[str, nn.Module | str] = {
            name: _build(_of_side(model, side)) for name, (model, _) in wanted.items()
        }
        models |= {name: _build_rival(name, side) for name in rivals}
        measured_here = _figures(models, side, batch, repeat, training, amp)
        for name, figures in measured_here.items():
            known = _published(wanted[name][1] if name in wanted else name, side)
            known |= _against_vim(figures, measured_here.get(name + _VIM, {})) if vim else {}
            rows.append({'side': side, 'model': name} | figures | known)
    device = 'GPU' if torch.cuda.is_available() else f'CPU, threads: {torch.get_num_threads()}'
    drawing.classifiers(rows, plot, f'{device}, batch {batch}')
    return rows


def _build_rival(name: str, side: int) -> nn.Module | str:
    try:
        return _build(RIVALS[name](side))
    except (ImportError, AssertionError, ValueError) as error:  # mmpretrain is absent, or it takes no such size
        return f'{type(error).__name__}: {error}'.splitlines()[0]


def _against_vim(figures: dict, plain: dict) -> dict:
    """How much faster than the network that scans every token, in the words of FastVim's paper, whose figures head it.

    Args:
        figures, plain: of a FastVim and of its counterpart; where either is missing nothing is said.
    """
    claims = published.table('fastvim')
    said = ', '.join(f'{row["claim"].partition(" than")[0]} {row["percent"]} %' for row in claims.rows)
    heading = f'than Vim (published, at most, at {claims.size}: {said})'
    if not (plain.get('images/s') and figures['images/s']):
        return {heading: ''}
    faster = float(figures['images/s']) / float(plain['images/s']) - 1
    fewer = 1 - float(figures['GFLOPs']) / float(plain['GFLOPs'])
    return {heading: f'faster {faster:.1%}, fewer FLOPs {fewer:.1%}'.replace('%', ' %')}


def _published(model: str | None, side: int) -> dict:
    """What the papers say of a model at a size: with speeds over sizes, and at 224 those of the main table."""
    over_sizes, models = published.table('resolution'), published.table('models')
    row = over_sizes.row(model=model, size=side)
    main = models.row(model=model) if side == models.size else {}
    found, also = _beside(row, over_sizes), _beside(main, models)
    return found | {key: value for key, value in also.items() if not found.get(key)}


def _beside(row: dict, table: published.Table) -> dict:
    """What a paper says, under headings that name it and its device."""
    keys = {
        'gflops': 'GFLOPs',
        'images_per_s': 'images/s',
        'training_images_per_s': 'training images/s',
        'top1': 'top-1',
    }
    row = row | {'gflops': round(row['gflops'], 2)} if 'gflops' in row else row
    where = f' ({table.device}, batch {table.batch})'
    return {f'published {words}{where if "images" in key else ""}': row.get(key, '') for key, words in keys.items()}


def _ablation(name: str, variants: list[dict], side: int, batch: int, repeat: int) -> list[dict]:
    theirs = published.table(name)
    models = {
        ', '.join(f'{key} {value}' for key, value in variant.items()): Classifier(
            VMamba('tiny_s1l8', out_indices=(3,), **variant)
        )
        for variant in variants
    }
    found = _figures(models, side, batch, repeat, training=True, amp=False)
    return [
        {_HOUSEHOLD: label} | figures | _beside(theirs.row(**variant), theirs)
        for variant, (label, figures) in zip(variants, found.items(), strict=True)
    ]


def routes(side: int, batch: int, repeat: int) -> list[dict]:
    """VMamba-T with every pattern of routes, with and without its depthwise convolutions, beside the paper's rows.

    Args:
        side: of the square images, in pixels.
        batch: images at a time.
        repeat: measured rounds.
    """
    keys = ('routes', 'conv_size')
    variants = [{key: row[key] for key in keys} for row in published.table('routes').rows]
    return _ablation('routes', variants, side, batch, repeat)


def ssm_init(side: int, batch: int, repeat: int) -> list[dict]:
    """VMamba-T with every initialisation of its scans, beside the paper's rows; arguments as of `routes`."""
    variants = [{'ssm_init': row['ssm_init']} for row in published.table('ssm_init').rows]
    return _ablation('ssm_init', variants, side, batch, repeat)
