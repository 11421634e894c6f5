"""Two-stage detectors from an image to boxes, scores, classes and masks, in operators that ONNX has.

The networks are mmdet's. What stands between them is written again here for one image, without what cannot be traced:
choosing proposals, assigning them to levels, suppression, pasting of masks.
"""

import math

import torch
from torch.nn import functional as F

from . import regions
from .preprocessing import Normalised

OUTPUTS = ('boxes', 'scores', 'labels', 'masks')
_HEADS = ('RPNHead', 'StandardRoIHead')
_SMALLEST_RATIO = 16 / 1000  # mmdet's bound on how much a box may grow or shrink


class Detector(Normalised):
    """`boxes` `(N, 4)` in pixels, `scores` `(N,)`, `labels` `(N,)` int64 and, of Mask R-CNN, `masks` `(N, H, W)` bool.

    Args:
        model: mmdet's two-stage detector.

    Raises:
        ValueError: a part of the detector that is not supported.
    """

    def __init__(self, model):
        super().__init__(model)
        unsupported = missing(model)
        if unsupported:
            raise ValueError(
                f'{type(model).__name__}: not exported: {"; ".join(unsupported)}. Whole detectors are exported of '
                "mmdet's RPNHead and StandardRoIHead (Faster and Mask R-CNN); of others take --what backbone"
            )
        self.register_buffer('score_threshold', torch.tensor([float(model.test_cfg.rcnn.score_thr)]))
        self.outputs = OUTPUTS if model.roi_head.with_mask else OUTPUTS[:3]

    def forward(self, image):
        size = image.shape[2:]
        maps = self.model.extract_feat(self._padded(self.normalised(image)))
        proposals = self._proposals(maps, size)
        boxes, scores, labels = self._detections(maps, proposals, size)
        if not self.model.roi_head.with_mask:
            return boxes, scores, labels
        return boxes, scores, labels, self._masks(maps, boxes, labels, size)

    def by_toolbox(self, image: torch.Tensor, score_threshold: float | None = None) -> tuple[torch.Tensor, ...]:
        """What mmdet itself predicts of an image `(1, 3, H, W)`, in the order of `outputs`."""
        from mmdet.structures import DetDataSample

        size = tuple(image.shape[2:])
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
        inputs = {'inputs': [image[0].flip(0)], 'data_samples': [sample]}
        config = self.model.roi_head.test_cfg
        configured = config.score_thr
        config.score_thr = configured if score_threshold is None else score_threshold
        try:
            found = self.model.test_step(inputs)[0].pred_instances
        finally:
            config.score_thr = configured
        names = {'boxes': 'bboxes'}
        return tuple(found[names.get(name, name)] for name in self.outputs)

    def _padded(self, image):
        preprocessor = self.model.data_preprocessor
        side = preprocessor.pad_size_divisor
        down, right = (-size % side for size in image.shape[2:])
        return F.pad(image, (0, right, 0, down), value=float(preprocessor.pad_value))

    def _proposals(self, maps, size):
        """`(K, 4)`, best first."""
        head, config = self.model.rpn_head, self.model.test_cfg.rpn
        all_boxes, all_scores, all_levels = [], [], []
        for level, (scores, deltas) in enumerate(zip(*head(maps), strict=True)):
            priors = head.prior_generator.single_level_grid_priors(scores.shape[2:], level, device=scores.device)
            scores = scores[0].permute(1, 2, 0).flatten().sigmoid()
            count = torch.sym_min(scores.shape[0], config.nms_pre) if config.nms_pre > 0 else scores.shape[0]
            scores, best = scores.topk(count)
            deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4)
            all_boxes.append(_decoded(head.bbox_coder, priors[best], deltas[best], size))
            all_scores.append(scores)
            all_levels.append(torch.full_like(scores, level))
        boxes, scores, levels = (torch.cat(parts) for parts in (all_boxes, all_scores, all_levels))
        smallest = config.get('min_bbox_size', -1)
        if smallest >= 0:
            large = ((boxes[:, 2:] - boxes[:, :2]) > smallest).all(1)
            scores = torch.where(large, scores, -1)
        apart = boxes + (levels * (_largest(boxes, scores >= 0) + 1))[:, None]
        kept = regions.nms(
            apart, scores, torch.full_like(scores[:1], -0.5), config.nms.iou_threshold, config.max_per_img
        )
        return boxes[kept]

    def _pooled(self, extractor, maps, boxes):
        layers = extractor.roi_layers
        maps = list(maps[: len(layers)])
        levels = extractor.map_roi_levels(F.pad(boxes, (1, 0)), len(maps))
        scales = [layer.spatial_scale for layer in layers]
        return regions.pyramid_align(maps, boxes, levels, scales, layers[0].output_size[0], layers[0].sampling_ratio)

    def _detections(self, maps, proposals, size):
        heads, config = self.model.roi_head, self.model.test_cfg.rcnn
        logits, deltas = heads.bbox_head(self._pooled(heads.bbox_roi_extractor, maps, proposals))
        scores = logits.softmax(-1)[:, :-1]
        classes = scores.shape[1]
        boxes = proposals[:, None].expand(-1, deltas.shape[1] // 4, 4).reshape(-1, 4)
        boxes = _decoded(heads.bbox_head.bbox_coder, boxes, deltas.reshape(-1, 4), size)
        boxes = boxes.reshape(-1, deltas.shape[1] // 4, 4).expand(-1, classes, 4).reshape(-1, 4)
        labels = torch.arange(classes, device=boxes.device)[None].expand(scores.shape[0], classes).reshape(-1)
        scores = scores.reshape(-1)
        # as mmdet: boxes of other classes are moved away, by what float32 makes of it
        apart = boxes + (labels * (_largest(boxes, scores > self.score_threshold) + 1))[:, None]
        kept = regions.nms(apart, scores, self.score_threshold, config.nms.iou_threshold, config.max_per_img)
        return boxes[kept], scores[kept], labels[kept]

    def _masks(self, maps, boxes, labels, size):
        """`(N, H, W)`: small masks drawn into their boxes, bilinearly, as two matrix products."""
        heads = self.model.roi_head
        small = heads.mask_head(self._pooled(heads.mask_roi_extractor, maps, boxes)).sigmoid()
        if heads.mask_head.class_agnostic:
            small = small[:, 0]
        else:
            small = small.gather(1, labels[:, None, None, None].expand(-1, 1, *small.shape[2:]))[:, 0]
        rows, columns = (
            _bilinear(boxes[:, axis], boxes[:, axis + 2], count, small.shape[1 + axis])
            for axis, count in ((1, size[0]), (0, size[1]))
        )
        return rows @ small @ columns.mT >= self.model.test_cfg.rcnn.mask_thr_binary


def _bilinear(first, last, count, cells):
    """`(N, count, cells)`: how much each cell between two edges gives to each of `count` pixels."""
    position = torch.arange(count, device=first.device) + 0.5
    position = (position - first[:, None]) / (last - first)[:, None] * cells - 0.5
    distance = position[:, :, None] - torch.arange(cells, device=first.device)
    return (1 - distance.abs()).clamp(min=0)


def _largest(boxes, valid):
    """The largest coordinate of valid boxes; 0 where there is none."""
    return torch.where(valid[:, None], boxes, 0).amax((0, 1))


def _decoded(coder, boxes, deltas, size):
    """Boxes `(N, 4)` moved and scaled by what a head says, inside of an image."""
    means, deviations = (deltas.new_tensor(values) for values in (coder.means, coder.stds))
    deltas = deltas * deviations + means
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, :2] + boxes[:, 2:]) * 0.5 + sides * deltas[:, :2]
    bound = abs(math.log(_SMALLEST_RATIO))
    sides = sides * deltas[:, 2:].clamp(-bound, bound).exp()
    x1, y1, x2, y2 = torch.cat([centres - sides * 0.5, centres + sides * 0.5], 1).unbind(1)
    if coder.clip_border:
        (x1, x2), (y1, y2) = (
            [v.clamp(0, side) for v in pair] for pair, side in (((x1, x2), size[1]), ((y1, y2), size[0]))
        )
    return torch.stack([x1, y1, x2, y2], 1)


def missing(model) -> list[str]:
    """What of a detector is not supported, in words."""
    heads = {name: getattr(model, name, None) for name in ('rpn_head', 'roi_head')}
    others = [f'{name} {type(head).__name__}' for name, head in heads.items() if type(head).__name__ not in _HEADS]
    return others or [*_unsupported_rpn(model), *_unsupported_heads(model)]


def _unsupported_rpn(model):
    head, config = model.rpn_head, model.test_cfg.rpn
    if type(head.prior_generator).__name__ != 'AnchorGenerator':
        yield f'anchor_generator {type(head.prior_generator).__name__}'
    if not head.use_sigmoid_cls:
        yield 'rpn_head with a softmax'
    yield from _unsupported_boxes('rpn_head', head.bbox_coder, config.nms)


def _unsupported_heads(model):
    heads, config = model.roi_head, model.test_cfg.rcnn
    yield from _unsupported_boxes('bbox_head', heads.bbox_head.bbox_coder, config.nms)
    if heads.with_shared_head:
        yield 'roi_head with a shared_head'
    if heads.bbox_head.custom_cls_channels:
        yield f'classes of {type(heads.bbox_head.loss_cls).__name__}'
    extractors = [heads.bbox_roi_extractor]
    if heads.with_mask:
        extractors.append(heads.mask_roi_extractor)
        if type(heads.mask_head).__name__ != 'FCNMaskHead':
            yield f'mask_head {type(heads.mask_head).__name__}'
        if config.mask_thr_binary < 0:
            yield 'mask_thr_binary below 0 (masks that are no yes or no)'
    for extractor in extractors:
        layer = extractor.roi_layers[0]
        aligned = getattr(layer, 'aligned', False) and getattr(layer, 'pool_mode', None) == 'avg'
        if type(extractor).__name__ != 'SingleRoIExtractor' or type(layer).__name__ != 'RoIAlign' or not aligned:
            yield f'{type(extractor).__name__} of {layer} (only RoIAlign, aligned, of means)'


def _unsupported_boxes(name, coder, nms):
    if type(coder).__name__ != 'DeltaXYWHBBoxCoder' or coder.add_ctr_clamp:
        yield f'{name} with {type(coder).__name__}'
    if nms.get('type', 'nms') != 'nms' or set(nms) - {'type', 'iou_threshold'}:
        yield f'{name} with suppression {dict(nms)} (only type nms with iou_threshold)'
