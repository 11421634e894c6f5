"""COCO's figures by faster-coco-eval: taken where it can be, and the same."""

import json

import pytest
import torch
from mmengine.config import Config

from mmvmamba.engine.coco import evaluate_faster

pytest.importorskip('faster_coco_eval')
metrics = pytest.importorskip('mmdet.evaluation.metrics')
if not hasattr(metrics, 'FasterCocoMetric'):
    pytest.skip('this mmdet has no FasterCocoMetric', allow_module_level=True)


@pytest.mark.parametrize(
    'type_', ['CocoMetric', 'mmdet.CocoMetric', metrics.CocoMetric], ids=['name', 'scoped', 'class']
)
def test_coco_metric_is_replaced_however_it_is_written(type_):
    cfg = Config(dict(default_scope='mmdet', val_evaluator=dict(type=type_), test_evaluator=[dict(type=type_)]))
    evaluate_faster(cfg)
    assert cfg.val_evaluator.type == cfg.test_evaluator[0].type == 'mmdet.FasterCocoMetric'


@pytest.mark.parametrize(
    'scope, evaluator',
    [
        ('mmdet', dict(type='LVISMetric')),
        ('mmdet', dict(type='CocoMetric', use_mp_eval=True)),
        ('mmdet', None),
        ('mmseg', dict(type='CocoMetric')),
    ],
)
def test_others_stay(scope, evaluator):
    cfg = Config(dict(default_scope=scope, val_evaluator=evaluator))
    evaluate_faster(cfg)
    assert cfg.val_evaluator == evaluator


def test_the_figures_are_the_same(tmp_path):
    generator = torch.Generator().manual_seed(0)
    annotations, samples = [], []
    for image in range(6):
        corner = torch.rand(5, 2, generator=generator) * 60
        boxes = torch.cat([corner, corner + 10 + torch.rand(5, 2, generator=generator) * 60], 1)
        labels = torch.randint(2, (5,), generator=generator)
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            polygon = [box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]]
            place = dict(bbox=[*box[:2], width, height], area=width * height, segmentation=[polygon], iscrowd=0)
            annotations.append(dict(place, id=len(annotations) + 1, image_id=image, category_id=label + 1))
        found = boxes + torch.randn(5, 4, generator=generator) * 3
        rows, columns = torch.arange(128)[:, None], torch.arange(128)
        masks = torch.stack([(columns > x) & (columns < u) & (rows > y) & (rows < v) for x, y, u, v in found.tolist()])
        scores = torch.rand(5, generator=generator)
        instances = dict(bboxes=found, labels=labels, scores=scores, masks=masks)
        samples.append(dict(img_id=image, ori_shape=(128, 128), pred_instances=instances))
    images = [dict(id=i, file_name=f'{i}.jpg', height=128, width=128) for i in range(6)]
    categories = [dict(id=1, name='a'), dict(id=2, name='b')]
    content = dict(info={}, images=images, annotations=annotations, categories=categories)
    (tmp_path / 'a.json').write_text(json.dumps(content))
    figures = []
    for metric in (metrics.CocoMetric, metrics.FasterCocoMetric):
        evaluator = metric(ann_file=str(tmp_path / 'a.json'), metric=['bbox', 'segm'])
        evaluator.dataset_meta = dict(classes=('a', 'b'))
        evaluator.process({}, samples)
        figures.append(evaluator.evaluate(6))
    assert figures[0] == figures[1]
    assert 0.2 < figures[0]['coco/bbox_mAP'] < 0.99
    assert 0.2 < figures[0]['coco/segm_mAP'] < 0.99
