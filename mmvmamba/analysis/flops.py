"""Parameters and FLOPs through mmengine's counter, with the operators that our models add to PyTorch's.

Counted as in the published tables: one multiply-add is 1; LayerNorm 5 an element, BatchNorm in evaluation 2,
bilinear resizing 4, average pooling 1 an input; activations, max pooling and RoIAlign 0. A scan of D channels over L
positions is D * L * (9 N + 1); the projections that a fused operator hides count like linears.
"""

import contextlib
from collections import Counter
from typing import NamedTuple

import torch
from mmengine.analysis import FlopAnalyzer, parameter_count
from mmengine.analysis.jit_handles import get_shape, norm_flop_counter
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmvmamba.kernels import availability


class Complexity(NamedTuple):
    """What a model costs for one input.

    Attributes:
        parameters: number of parameters.
        flops: by the rules above.
        by_operator: the same, by operator.
        not_counted: operators without a rule, and how often each ran.
    """

    parameters: int
    flops: int
    by_operator: Counter
    not_counted: Counter


def _ss2d(inputs, outputs) -> Counter:
    batch, height, width, channels = get_shape(inputs[0])
    routes, rows, _ = get_shape(inputs[1])
    rank, states = get_shape(inputs[2])[2], get_shape(inputs[4])[1]
    per_pixel = rows * channels + rank * channels + channels * (9 * states + 1)
    return Counter({'ss2d': batch * height * width * routes * per_pixel})


def _selective_scan(inputs, outputs) -> Counter:
    batch, channels, length = get_shape(inputs[0])
    return Counter({'selective_scan': batch * channels * length * (9 * get_shape(inputs[2])[1] + 1)})


_DIRECTION = 7  # tensors of a direction, in the order of `mmvmamba.kernels.Direction`


def _pooled_scan(inputs, outputs) -> Counter:
    """Convolutions and skips over all tokens, projections and scans over the pooled ones, the norm."""
    batch, height, width, *planes, double = get_shape(inputs[0])
    count = planes[0] if planes else 1
    channels, tokens = double // 2, height * width * count
    axis, pool = (inputs[1 + 2 * _DIRECTION + 2 + i].toIValue() for i in range(2))
    positions = tokens if pool is None else {'row': height, 'column': width}[axis] * count
    return Counter({'pooled_scan': batch * _mixer_flops(tokens, positions, channels, inputs[1:])})


def _mixer_flops(tokens: int, positions: int, channels: int, parameters) -> int:
    """Of an image, given the traced tensors of both directions and the norm."""
    flops = 0
    for way in range(2):
        conv, _, x_proj, dt, _, A, _ = (get_shape(parameters[way * _DIRECTION + i]) for i in range(_DIRECTION))
        flops += tokens * channels * (conv[2] + 1)
        flops += positions * channels * (x_proj[0] + dt[1] + 9 * A[1])
    has_norm = get_shape(parameters[2 * _DIRECTION]) is not None
    return flops + 5 * tokens * channels * has_norm


def _pooled_scan_kept(inputs, outputs) -> Counter:
    """As the above, of the tokens that a mask has kept; the scans pass through every line, empty ones too."""
    batch, kept, double = get_shape(inputs[0])
    channels, parameters = double // 2, inputs[2:]
    height, width, axis = (parameters[2 * _DIRECTION + 2 + i].toIValue() for i in range(3))
    flops = _mixer_flops(kept, {'row': height, 'column': width}[axis], channels, parameters)
    return Counter({'pooled_scan_kept': batch * flops})


_HANDLERS = {
    'mmvmamba::ss2d': _ss2d,
    'mmvmamba::selective_scan': _selective_scan,
    'mmvmamba::pooled_scan': _pooled_scan,
    'aten::rms_norm': norm_flop_counter(2),  # as LayerNorm
    'mmvmamba::pooled_scan_planes': _pooled_scan,
    'mmvmamba::pooled_scan_kept': _pooled_scan_kept,
    **dict.fromkeys(('aten::gelu', 'aten::silu', 'aten::relu', 'aten::sigmoid', 'aten::softmax', 'aten::max_pool2d')),
}


@contextlib.contextmanager
def _fused(model: nn.Module):
    """Let every scan run as the one operator that is counted, whatever backend the model was built for."""
    modules = {
        module: module.backend for module in model.modules() if isinstance(getattr(module, 'backend', None), str)
    }
    fastest = next(name for name in ('cpu', 'torch') if availability('cpu')[name] is None)
    for module in modules:
        module.backend = fastest
    try:
        yield
    finally:
        for module, backend in modules.items():
            module.backend = backend


class _Tensors(nn.Module):
    """A detector's, a segmentor's or a classifier's raw forward pass as a function of one image."""

    def __init__(self, model, samples):
        super().__init__()
        self.model = model
        self.samples = samples

    def forward(self, image):
        return tuple(_flatten(self.model(image, self.samples, mode='tensor')))


class _Autoencoder(nn.Module):
    """A masked autoencoder's pre-training: the kept patches through the encoder, all through the decoder."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        latent, _, ids_restore = self.model.backbone(image)
        return self.model.neck(latent, ids_restore)


def _flatten(results):
    if isinstance(results, torch.Tensor):
        yield results
    elif isinstance(results, dict):
        yield from _flatten(list(results.values()))
    elif isinstance(results, (list, tuple)):
        for result in results:
            yield from _flatten(result)
    elif hasattr(results, 'all_items'):  # mmengine's data elements
        yield from _flatten([value for _, value in results.all_items()])


def complexity(model: nn.Module, image: torch.Tensor) -> Complexity:
    """Count a plain module's parameters and FLOPs for one image `(B, C, H, W)`, in evaluation mode."""
    training = model.training
    model.train(False)
    try:
        with _fused(model), torch.no_grad():
            analyzer = FlopAnalyzer(model, (image,)).set_op_handle(**_HANDLERS)
            analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings('none')
            flops, by_operator = analyzer.total(), analyzer.by_operator()
            not_counted = Counter(analyzer.unsupported_ops())
    finally:
        model.train(training)
    return Complexity(parameter_count(model)[''], int(flops), by_operator, not_counted)


def of_config(cfg: Config, height: int, width: int) -> Complexity:
    """Build a config's model and count it on a random image; needs no dataset.

    Detection: the boxes of 1000 proposals, the masks of the first 100. Segmentation: parameters with the auxiliary
    head, FLOPs without it. Classification: up to the logits. Masked autoencoders: up to the prediction, with the share
    of the patches masked that the config says.
    """
    init_default_scope(cfg.default_scope)
    if cfg.default_scope == 'mmdet':
        from mmdet.structures import DetDataSample as DataSample
    elif cfg.default_scope == 'mmseg':
        from mmseg.structures import SegDataSample as DataSample
    else:
        from mmpretrain.structures import DataSample
    model = MODELS.build(cfg.model)
    image = torch.rand(1, getattr(model.backbone, 'in_channels', 3), height, width)
    if cfg.model.type == 'MAE':
        return complexity(_Autoencoder(model), image)
    shape = (height, width)
    meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0))
    return complexity(_Tensors(model, [DataSample(metainfo=meta)]), image)
