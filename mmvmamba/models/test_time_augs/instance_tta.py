"""Test-time augmentation of instance segmentation, which mmdet's own refuses."""

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from mmvmamba.registry import register_model


@register_model
class InstanceTTAModel(DetTTAModel):
    """Merge the instances of all views by non-maximum suppression; a box that stays keeps the mask of its view.

    Args:
        tta_cfg: `nms` and `max_per_img`, as of mmdet's `DetTTAModel`.
    """

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        views = [sample.pred_instances for sample in data_samples]
        if 'masks' not in views[0]:
            return super()._merge_single_sample(data_samples)
        boxes, scores = self.merge_aug_bboxes(
            [view.bboxes for view in views], [view.scores for view in views], [s.metainfo for s in data_samples]
        )
        if boxes.numel() == 0:
            return data_samples[0]
        labels = torch.cat([view.labels for view in views])
        masks = torch.cat([_unflip(s.pred_instances.masks, s.metainfo) for s in data_samples])
        kept_boxes, keep = batched_nms(boxes, scores, labels, self.tta_cfg.nms)
        best = slice(self.tta_cfg.max_per_img)
        merged = InstanceData(
            bboxes=kept_boxes[best, :-1],
            scores=kept_boxes[best, -1],
            labels=labels[keep][best],
            masks=masks[keep][best],
        )
        sample = data_samples[0]
        sample.pred_instances = merged
        return sample


def _unflip(masks: torch.Tensor, meta: dict) -> torch.Tensor:
    """Masks `(n, H, W)` of a view, turned back to the original image."""
    if not meta['flip']:
        return masks
    axes = {'horizontal': (2,), 'vertical': (1,), 'diagonal': (1, 2)}[meta['flip_direction']]
    return masks.flip(axes)
