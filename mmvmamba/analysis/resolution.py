"""Top-1 of a classifier over test sizes that it was not trained at: as it is, and with a new linear layer for each.

The published protocol: the short side is resized to int(256 / 224 * size), bicubic, the centre of `size` is cut out,
the weights stay. For the second figure a fresh linear layer alone is trained on the features of that size: weights of
N(0, 0.01), a bias of 0, SGD with momentum 0.9 and no decay, batches of 4096, 30 epochs, a cosine to 0 over the steps.
Ours takes the features of the training images once, without augmentation.
"""

import copy
import math
from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as F

from mmvmamba import checkpoints
from mmvmamba.registry import is_type

from . import published

SIDES = (224, 288, 384, 512, 640, 768)
_RATES = ((384, 0.05), (512, 0.2), (math.inf, 0.5))  # up to a size: the learning rate of its linear layer


def learning_rate(side: int) -> float:
    """The published learning rate of the linear layer at a size."""
    return next(rate for most, rate in _RATES if side <= most)


def pipeline_of(pipeline: list[dict], side: int) -> list[dict]:
    """A test pipeline at another size: its loading and packing, between them the published resizing and cropping.

    Raises:
        ValueError: it does not begin with loading an image and end with packing it.
    """
    from mmpretrain.registry import TRANSFORMS

    loading, packing = pipeline[0], pipeline[-1]
    if not is_type(loading['type'], 'LoadImageFromFile', TRANSFORMS) or not is_type(
        packing['type'], 'PackInputs', TRANSFORMS
    ):
        raise ValueError(
            f'the test pipeline is {loading["type"]} ... {packing["type"]}; expected LoadImageFromFile ... PackInputs'
        )
    edge = dict(scale=int(256 / 224 * side), edge='short', backend='pillow', interpolation='bicubic')
    middle = [dict(type='mmpretrain.ResizeEdge', **edge), dict(type='mmpretrain.CenterCrop', crop_size=side)]
    return [copy.deepcopy(loading), *middle, copy.deepcopy(packing)]


def load(cfg: Config, checkpoint: str, trust: bool = False) -> nn.Module:
    """A config's classifier with a checkpoint's weights, strictly, in evaluation mode, on the GPU if there is one.

    Raises:
        FileNotFoundError, CheckpointError: see `checkpoints.load`.
        ValueError: its head is not one linear layer.
    """
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    if not isinstance(getattr(model.head, 'fc', None), nn.Linear):
        raise ValueError(f'the head is a {type(model.head).__name__}; expected one linear layer: LinearClsHead')
    checkpoints.load(checkpoint, model, trust=trust)
    return model.eval().to('cuda' if torch.cuda.is_available() else 'cpu')


def _features(model: nn.Module, cfg: Config, split: str, side: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What the classifier's head is given `(B, C)`, and labels `(B)`, of a split's images in their order."""
    loader = copy.deepcopy(cfg[f'{split}_dataloader'])
    loader.dataset.pipeline = pipeline_of(cfg.test_dataloader.dataset.pipeline, side)
    loader.dataset.test_mode = True
    loader.update(sampler=dict(type='DefaultSampler', shuffle=False), drop_last=False)
    for name in ('batch_sampler', 'worker_init_fn'):
        loader.pop(name, None)
    with torch.no_grad():
        for batch in Runner.build_dataloader(loader, seed=0):
            data = model.data_preprocessor(batch, training=False)
            features = model.extract_feat(data['inputs'], stage='pre_logits')
            labels = torch.cat([sample.gt_label for sample in data['data_samples']])
            yield features.float().cpu(), labels.cpu()


def top1(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """How many of the labels `(B)` have the highest of the logits `(B, K)`, in per cent."""
    return (logits.argmax(1) == labels).float().mean().item() * 100


def linear_probe(
    features: torch.Tensor, labels: torch.Tensor, classes: int, rate: float, epochs: int = 30, batch: int = 4096
) -> nn.Linear:
    """A linear layer trained on features `(B, C)` by the published recipe; seeded.

    Args:
        features, labels: of the training images.
        classes: outputs.
        rate: learning rate at the start.
        epochs: over the images.
        batch: images a step; all of them where there are fewer.
    """
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(features.shape[1], classes)
    nn.init.normal_(layer.weight, std=0.01, generator=generator)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
    steps = epochs * math.ceil(len(features) / batch)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(features), generator=generator).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(layer(features[chosen]), labels[chosen]).backward()
            optimizer.step()
            scheduler.step()
    return layer


def over_sizes(model: nn.Module, cfg: Config, sides: list[int], probe: bool, epochs: int = 30) -> list[dict]:
    """Top-1 at each size, with published figures beside where the papers have the model.

    Args:
        model: from `load`.
        cfg: its config, which says the data: the test split, and for the probe the training split.
        sides: of the square crops, in pixels.
        probe: train a linear layer at each size, too.
        epochs: of the probe.

    Returns:
        A row per size.
    """
    table, name = published.table('resolution'), published.model_name(cfg.model.backbone)
    head = model.head.fc
    rows = []
    for side in sides:
        features, labels = map(torch.cat, zip(*_features(model, cfg, 'test', side), strict=True))
        with torch.no_grad():
            found = {'side': side, 'top-1': f'{top1(head.cpu()(features), labels):.2f}'}
        if probe:
            given = map(torch.cat, zip(*_features(model, cfg, 'train', side), strict=True))
            layer = linear_probe(*given, head.out_features, learning_rate(side), epochs)
            with torch.no_grad():
                found['top-1, new linear layer'] = f'{top1(layer(features), labels):.2f}'
        known = table.row(model=name, size=side)
        found['published top-1'] = known.get('top1', '')
        found['published top-1, linear'] = known.get('top1_linear', '')
        rows.append(found)
    return rows
