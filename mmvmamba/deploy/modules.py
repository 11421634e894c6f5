"""What of a config's model is exported: a module of one image tensor, with names for what it returns."""

import copy
import json
from dataclasses import dataclass

import torch
from mmengine.registry import DATASETS, MODELS
from torch import nn
from torch.nn import functional as F

from .detectors import Detector
from .preprocessing import Normalised


@dataclass
class Exportable:
    """A module that can be exported.

    Attributes:
        module: of one tensor `(B, 3, H, W)`, float32, in evaluation mode.
        outputs: names of what it returns.
        facts: text by name, which the file carries for whoever runs it: `task` ('backbone', 'classifier', 'segmentor',
            'detector'), `input` ('RGB 0..255', 'normalised'), and JSON lists `classes` and `palette` where the config
            has them.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    facts: dict[str, str]

    @property
    def detects(self) -> bool:
        """Whether it is a detector, which takes one image at a time."""
        return self.facts['task'] == 'detector'


def exportable(model: nn.Module, what: str = 'model', dataset: dict | None = None) -> Exportable:
    """Take what is exported from a toolbox's model; the model itself is not changed.

    Args:
        model: mmpretrain's ImageClassifier, mmseg's EncoderDecoder, mmdet's Faster or Mask R-CNN, or anything with a
            `backbone`.
        what: 'backbone' for feature maps of a normalised image; 'model' for what the task wants of an image as it is.
        dataset: the config of a data set whose classes and palette the file shall carry.

    Raises:
        ValueError: another kind of model, or a detector with a part that is not supported.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if what == 'backbone':
        count = len(model.backbone.out_indices)
        facts = dict(task='backbone', input='normalised')
        return Exportable(_Tuple(_exact(model.backbone)), tuple(f'map{i}' for i in range(count)), facts)
    facts = dict(input='RGB 0..255', **_classes(dataset))
    if hasattr(model, 'roi_head'):
        module = Detector(_exact(model))
        return Exportable(module, module.outputs, dict(task='detector', **facts))
    kind = next((kind for kind in _KINDS if hasattr(model, kind[0])), None)
    if kind is None:
        raise ValueError(
            f'{type(model).__name__}: whole models are exported of classifiers, segmentors, Faster and Mask R-CNN; of '
            'others take --what backbone'
        )
    _, task, wrapper, output = kind
    return Exportable(wrapper(_exact(model)), (output,), dict(task=task, **facts))


class _Tuple(nn.Module):
    """A backbone by the name of its input."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, image):
        return self.backbone(image)


class Classifier(Normalised):
    """Probabilities, `(B, classes)`."""

    def forward(self, image):
        scores = self.model(self.normalised(image), mode='tensor')
        return torch.softmax(scores[0] if isinstance(scores, (tuple, list)) else scores, dim=1)


class Segmentor(Normalised):
    """The class of every pixel, `(B, H, W)`, of the whole image at once."""

    def forward(self, image):
        logits = self.model(self.normalised(image), mode='tensor')
        logits = F.interpolate(logits, image.shape[2:], mode='bilinear', align_corners=self.model.align_corners)
        return logits.argmax(1)


_KINDS = (('decode_head', 'segmentor', Segmentor, 'class_map'), ('head', 'classifier', Classifier, 'probabilities'))


class _AdaptivePool(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two matrix products: ONNX has no adaptive pooling of sizes that are not known."""

    def __init__(self, sides):
        super().__init__()
        self.sides = sides

    def forward(self, x):
        rows, columns = (_averages(size, new, x) for size, new in zip(x.shape[2:], self.sides, strict=True))
        return rows @ x @ columns.mT


def _averages(size, new, like):
    """`(new, size)`: each row is the mean over one of `new` parts, which overlap as PyTorch has them."""
    part, position = torch.arange(new, device=like.device)[:, None], torch.arange(size, device=like.device)
    first, behind = part * size // new, ((part + 1) * size + new - 1) // new
    return ((position >= first) & (position < behind)).to(like.dtype) / (behind - first)


def _exact(model: nn.Module) -> nn.Module:
    """Replace what cannot be exported at dynamic sizes; gives the same numbers."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d):
                sides = child.output_size
                setattr(parent, name, _AdaptivePool((sides, sides) if isinstance(sides, int) else tuple(sides)))
    return model


def _classes(dataset: dict | None) -> dict[str, str]:
    if not dataset:
        return {}
    while 'dataset' in dataset:  # wrappers
        dataset = dataset['dataset']
    kind = dataset.get('type')
    known = DATASETS.get(kind) if isinstance(kind, str) else kind
    meta = {**getattr(known, 'METAINFO', {}), **(dataset.get('metainfo') or {})}
    return {key: json.dumps(meta[key]) for key in ('classes', 'palette') if isinstance(meta.get(key), (list, tuple))}


def build(cfg, checkpoint: str | None = None, trust: bool = False) -> nn.Module:
    """The model of a config; with a checkpoint strictly its weights, else fresh ones.

    Raises:
        FileNotFoundError, CheckpointError: see `mmvmamba.checkpoints.load`.
    """
    from mmvmamba import checkpoints

    model = MODELS.build(cfg.model)
    if checkpoint:
        checkpoints.load(checkpoint, model, trust=trust)
    return model.eval()
