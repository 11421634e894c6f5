"""Whole detectors: a tiny Mask R-CNN in PyTorch and in onnxruntime beside mmdet's own predictions."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from PIL import Image
from tool_runs import ROOT, load_tool
from torch import nn

from mmvmamba.deploy import checking, detectors, exporting, instances, modules

pytest.importorskip('mmdet')


class Strided(nn.Module):
    """A backbone of two maps; exporting one of ours is tested beside and takes seconds."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 32, 2, 2)])

    def forward(self, image):
        x = self.stages[0](image).relu()
        x = x + 1e-3 * x.cumsum(2).cumsum(3)  # no two positions alike, where the image is padded either
        return x, self.stages[1](x)


def mask_rcnn(**changes) -> nn.Module:
    """A pyramid of three levels; large weights at the end: scores differ as a trained network's do."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    cfg = Config.fromfile(ROOT / 'configs/_base_/models/mask_rcnn_fpn.py').model
    cfg.backbone = dict(type=Strided)
    cfg.neck.update(in_channels=[16, 32], out_channels=8, num_outs=3)
    cfg.rpn_head.update(in_channels=8, feat_channels=8)
    cfg.rpn_head.anchor_generator.strides = [4, 8, 16]
    heads = cfg.roi_head
    for extractor in (heads.bbox_roi_extractor, heads.mask_roi_extractor):
        extractor.update(out_channels=8, featmap_strides=[4, 8], finest_scale=20)
    heads.bbox_head.update(in_channels=8, fc_out_channels=16, num_classes=3)
    heads.mask_head.update(in_channels=8, conv_out_channels=8, num_convs=1, num_classes=3)
    cfg.test_cfg.rpn.nms_pre = 300
    cfg = Config(dict(model=cfg))
    cfg.merge_from_dict({f'model.{name}': value for name, value in changes.items()})
    model = MODELS.build(cfg.model)
    DefaultScope._instance_dict.clear()
    with torch.no_grad():
        model.roi_head.bbox_head.fc_cls.weight.mul_(10)
    return model


@pytest.fixture(scope='module')
def what():
    return modules.exportable(mask_rcnn(), dataset=dict(metainfo=dict(classes=('a', 'b', 'c'))))


def found(what, size, **options):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        return what.module(image), what.module.by_toolbox(image, **options)


@pytest.mark.parametrize('size', [(64, 96), (101, 75)], ids=str)
def test_as_mmdet(what, size):
    actual, expected = found(what, size)
    assert len(expected[0]) >= instances.FEWEST
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_box_for_all_classes_and_no_masks():
    model = mask_rcnn(**{'roi_head.bbox_head.reg_class_agnostic': True, 'test_cfg.rpn.min_bbox_size': 3})
    model.roi_head.mask_head = None
    actual, expected = found(modules.exportable(model), (64, 96))
    assert len(expected[0]) >= instances.FEWEST
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_in_onnxruntime(what, tmp_path, capsys):
    """One file of standard operators: other sizes, nothing found, everything shown."""
    pytest.importorskip('onnxruntime')
    path = tmp_path / 'model.onnx'
    assert exporting.to_onnx(what, path) < 1e-5
    run = checking.runner(path, 'onnx')
    for row in checking.check(what, run, sizes=((64, 96), (133, 81))):
        assert row.passed, row
        assert 'above 0.05' in row.instances
    image = np.zeros((1, 3, 40, 50), np.float32)
    nothing = run(image, score_threshold=np.array([2], np.float32))
    assert [part.shape for part in nothing] == [(0, 4), (0,), (0,), (0, 40, 50)]

    capsys.readouterr()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(tmp_path / 'image.png')
    arguments = [str(tmp_path / 'image.png'), str(path), '--side', '48', '--out', str(tmp_path / 'drawn.png')]
    assert load_tool('onnx_demo').main(arguments) == 0
    assert Image.open(tmp_path / 'drawn.png').size == (448, 336)
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == f'{len(said) - 2} instances'
    assert load_tool('onnx_demo').main([*arguments, '--score', '2']) == 0
    assert '0 instances' in capsys.readouterr().out


def test_instances_that_differ_are_seen(what):
    (boxes, scores, labels, masks), _ = found(what, (64, 96))
    found_first = [part.numpy() for part in (boxes, scores, labels, masks)]
    count = len(boxes)
    assert instances.unmatched(found_first, found_first, 96) == 0
    for wrong in (
        (boxes + 0.1, scores, labels, masks),
        (boxes, scores * 0.99, labels, masks),
        (boxes, scores, labels + 1, masks),
        (boxes, scores, labels, ~masks),
        (boxes * np.nan, scores, labels, masks),
    ):
        wrong = [np.asarray(part) for part in wrong]
        assert instances.unmatched(wrong, found_first, 96) > 0.9
    fewer = [part[1:] for part in found_first]
    assert instances.unmatched(fewer, found_first, 96) == pytest.approx(1 / (2 * count - 1))


def test_without_scores_above_the_threshold_all_are_compared(what, monkeypatch):
    """Fresh heads find nothing: then nothing would be compared."""
    monkeypatch.setattr(what.module.model.roi_head.test_cfg, 'score_thr', 2)

    def run(image, score_threshold=None):
        threshold = 2 if score_threshold is None else float(score_threshold)
        with torch.no_grad():
            return [part.numpy() for part in what.module.by_toolbox(torch.from_numpy(image), threshold)]

    (row,) = checking.check(what, run, sizes=((64, 96),))
    assert row.passed
    assert row.instances == '100 instances that score above 0'
    (row,) = checking.check(what, lambda *a, **k: [part[:90] for part in run(*a, **k)], sizes=((64, 96),))
    assert row.difference == pytest.approx(10 / 190)
    assert not row.passed


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'test_cfg.rcnn.nms': dict(type='soft_nms', iou_threshold=0.5)}, 'soft_nms'),
        ({'test_cfg.rcnn.mask_thr_binary': -1}, 'mask_thr_binary'),
        ({'rpn_head.loss_cls.use_sigmoid': False}, 'softmax'),
        ({'roi_head.mask_roi_extractor.roi_layer.aligned': False}, 'RoIAlign'),
        ({'roi_head.type': 'DoubleHeadRoIHead', 'roi_head.reg_roi_scale_factor': 1.3}, 'DoubleHeadRoIHead'),
    ],
)
def test_what_is_refused(changes, named):
    with pytest.raises(ValueError, match=named) as error:
        modules.exportable(mask_rcnn(**changes))
    assert '--what backbone' in str(error.value)


def test_programs_of_detectors_are_refused(what, tmp_path):
    with pytest.raises(ValueError, match='--what backbone'):
        exporting.to_program(what, tmp_path / 'model.pt2')
    assert what.outputs == detectors.OUTPUTS
