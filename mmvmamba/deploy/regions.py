"""Non-maximum suppression and RoIAlign as operators of which PyTorch's exporters see only the shapes.

In PyTorch mmcv computes them; in ONNX they are NonMaxSuppression and RoiAlign. What a level of a pyramid pools is
chosen inside one operator, so that no size that depends on values comes into the traced program but the number of boxes
that are kept.
"""

import torch
from torch import Tensor


@torch.library.custom_op('mmvmamba_deploy::nms', mutates_args=())
def nms(boxes: Tensor, scores: Tensor, above: Tensor, iou: float, at_most: int) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: `(N, 4)`, x1, y1, x2, y2 in pixels.
        scores: `(N,)`.
        above: `(1,)`; scores that are not above this number are no candidates.
        iou: what overlaps a better one by more is dropped.
        at_most: how many are kept.

    Returns:
        Positions `(kept,)` of the boxes that are kept, int64, best first.
    """
    from mmcv.ops import nms as by_mmcv

    candidates = (scores > above).nonzero()[:, 0]
    if not len(candidates):
        return candidates
    return candidates[by_mmcv(boxes[candidates], scores[candidates], iou)[1][:at_most]]


@nms.register_fake
def _(boxes, scores, above, iou, at_most):
    return scores.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.custom_op(
    'mmvmamba_deploy::pyramid_align',
    mutates_args=(),
    # PyTorch 2.4 does not infer it from list[Tensor]
    schema='(Tensor[] maps, Tensor boxes, Tensor levels, float[] scales, SymInt side, SymInt samples) -> Tensor',
)
def pyramid_align(
    maps: list[Tensor], boxes: Tensor, levels: Tensor, scales: list[float], side: int, samples: int
) -> Tensor:
    """RoIAlign (aligned, mean) of each box on its own level of a pyramid of one image.

    Args:
        maps: `(1, C, h, w)` each.
        boxes: `(N, 4)`, x1, y1, x2, y2 in pixels of the image.
        levels: `(N,)`, int64: which map.
        scales: of each map: its pixels for one of the image.
        side: of what is pooled.
        samples: along each axis of a bin; 0: as many as the bin has pixels.

    Returns:
        `(N, C, side, side)`.
    """
    from mmcv.ops import roi_align

    pooled = maps[0].new_zeros(len(boxes), maps[0].shape[1], side, side)
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    for level, (values, scale) in enumerate(zip(maps, scales, strict=True)):
        here = levels == level
        if here.any():
            pooled[here] = roi_align(values, rois[here], (side, side), scale, samples, 'avg', True)
    return pooled


@pyramid_align.register_fake
def _(maps, boxes, levels, scales, side, samples):
    return maps[0].new_empty(boxes.shape[0], maps[0].shape[1], side, side)


def table() -> dict:
    """What they are in ONNX: the argument `custom_translation_table` of `torch.onnx.export`."""
    from collections.abc import Sequence

    import onnxscript
    from onnxscript.onnx_types import FLOAT, INT64

    def constant(value, kind=INT64):
        import numpy as np

        opset = onnxscript.evaluator.default().opset
        return opset.Constant(value=onnxscript.ir.tensor(np.array(value, np.int64 if kind is INT64 else np.float32)))

    def nms_onnx(boxes: FLOAT, scores: FLOAT, above: FLOAT, iou: float, at_most: int) -> INT64:
        opset = onnxscript.evaluator.default().opset
        found = opset.NonMaxSuppression(
            opset.Unsqueeze(boxes, constant([0])),
            opset.Unsqueeze(scores, constant([0, 1])),
            constant([at_most]),
            constant([iou], FLOAT),
            above,
        )
        return opset.Gather(found, constant(2), axis=1)

    def pyramid_align_onnx(
        maps: Sequence[FLOAT], boxes: FLOAT, levels: INT64, scales: Sequence[float], side: int, samples: int
    ) -> FLOAT:
        opset = onnxscript.evaluator.default().opset
        positions, pooled = [], []
        for level, (values, scale) in enumerate(zip(maps, scales, strict=True)):
            here = opset.Reshape(opset.NonZero(opset.Equal(levels, constant(level))), constant([-1]))
            positions.append(here)
            pooled.append(
                opset.RoiAlign(
                    values,
                    opset.Gather(boxes, here, axis=0),
                    opset.Mul(here, constant(0)),  # all of the first image
                    coordinate_transformation_mode='half_pixel',
                    mode='avg',
                    output_height=side,
                    output_width=side,
                    sampling_ratio=samples,
                    spatial_scale=scale,
                )
            )
        order = opset.Concat(*positions, axis=0)
        count = opset.Squeeze(opset.Shape(order))
        back = opset.ScatterElements(order, order, opset.Range(constant(0), count, constant(1)), axis=0)
        return opset.Gather(opset.Concat(*pooled, axis=0), back, axis=0)

    return {
        torch.ops.mmvmamba_deploy.nms.default: nms_onnx,
        torch.ops.mmvmamba_deploy.pyramid_align.default: pyramid_align_onnx,
    }
