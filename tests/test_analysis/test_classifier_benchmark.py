"""The papers' tables: rows for what runs here, with the published figures beside, where there are any."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmvmamba.analysis import classifier_benchmark, published
from mmvmamba.analysis.flops import complexity
from mmvmamba.models import VMamba

CONFIG = Path(__file__).resolve().parents[2] / 'configs/demo/vmamba_shapes_cls.py'


def test_scale_has_published_points_beside(tmp_path):
    pytest.importorskip('mmpretrain')
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone = dict(type='VMamba', arch='tiny_s1l8', embed_dims=8, depths=(1, 1, 1, 1), out_indices=(3,))
    cfg.model.head.in_channels = 64
    cfg.dump(tmp_path / 'small.py')
    cfg.model.backbone = dict(
        type='FastVim', arch='tiny', embed_dims=16, depth=2, out_type='featmap', img_size=32, patch_size=16
    )
    cfg.model.head.in_channels = 16
    cfg.dump(tmp_path / 'fastvim.py')
    configs = [str(tmp_path / 'small.py'), str(tmp_path / 'fastvim.py')]
    options = dict(batch=1, vim=True, training=True, amp=False, repeat=1, plot=tmp_path / 'scale.png')
    rows = classifier_benchmark.scale(configs, [64, 96], rivals=['Swin-T'], **options)
    assert len(rows) == 8
    assert [row['model'] for row in rows[:3]] == ['small', 'fastvim', 'fastvim, every token scanned (Vim)']
    for row in rows:
        assert not row['note']
        assert all(float(row[key]) > 0 for key in ('parameters M', 'images/s', 'training images/s'))
        assert row['published GFLOPs'] == ''
        against = row['than Vim (published, at most, at 2048: faster 72.5 %, fewer FLOPs 38.5 %)']
        assert bool(against) == (row['model'] == 'fastvim')
    faster = float(rows[1]['images/s']) / float(rows[2]['images/s']) - 1
    fewer = 1 - float(rows[1]['GFLOPs']) / float(rows[2]['GFLOPs'])
    said = rows[1]['than Vim (published, at most, at 2048: faster 72.5 %, fewer FLOPs 38.5 %)']
    assert said == f'faster {100 * faster:.1f} %, fewer FLOPs {100 * fewer:.1f} %'
    assert (rows[3]['model'], rows[3]['parameters M']) == ('Swin-T', '28.27')  # 28.29 with windows of 7
    assert (tmp_path / 'scale.png').stat().st_size > 5000
    other = str(CONFIG.with_name('upernet_vmamba_shapes.py'))
    with pytest.raises(ValueError, match='no classifier'):
        classifier_benchmark.scale([other], [64], rivals=[], **options)


def test_configs_of_one_name_are_two_models(tmp_path):
    pytest.importorskip('mmpretrain')
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.depths = (1, 1, 1, 1)
    other = str(tmp_path / CONFIG.name)
    cfg.dump(other)
    found = classifier_benchmark._ours([str(CONFIG), other], vim=False)
    assert [model['backbone']['depths'][2] for model, _ in found.values()] == [2, 1]
    assert list(found) == [CONFIG.stem, other]


def test_a_network_that_takes_no_such_input_says_so_in_its_row():
    """Batch norm cannot train on one image that has become one position."""
    models = {
        'normed': torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, stride=8), torch.nn.BatchNorm2d(4), torch.nn.Flatten()),
        'plain': torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, stride=8), torch.nn.Flatten()),
    }
    rows = classifier_benchmark._figures(models, 8, batch=1, repeat=1, training=True, amp=False)
    assert rows['normed']['training images/s'] == ''
    assert rows['normed']['note'].startswith('ValueError: Expected more than 1 value per channel')
    assert all(float(rows[name]['images/s']) > 0 for name in rows)
    assert float(rows['plain']['training images/s']) > 0


def test_published_figures_are_named_with_their_device():
    theirs = published.table('resolution')
    said = classifier_benchmark._beside(theirs.row(model='Swin-T', size=224), theirs)
    assert said == {
        'published GFLOPs': 4.51,
        'published images/s (NVIDIA A100, batch 32)': 1142,
        'published training images/s (NVIDIA A100, batch 32)': 769,
        'published top-1': 81.19,
    }


def test_models_of_the_main_table_alone_have_its_points():
    """VMamba-S is in no table over sizes; VMamba-T is in both, measured at different batch sizes."""
    small, tiny = (classifier_benchmark._published(f'VMamba-{name}', 224) for name in ('S s2l15', 'T s1l8'))
    speeds = [f'published {kind}images/s (NVIDIA A100, batch {n})' for n in (32, 128) for kind in ('', 'training ')]
    assert [small[key] for key in speeds] == ['', '', 877, 314]
    assert [tiny[key] for key in speeds] == [1490, 418, 1686, 571]
    assert (small['published GFLOPs'], small['published top-1']) == (8.72, 83.6)
    assert (tiny['published GFLOPs'], tiny['published top-1']) == (4.91, 82.6)
    assert set(classifier_benchmark._published('VMamba-S s2l15', 288).values()) == {''}
    assert set(classifier_benchmark._published(None, 224).values()) == {''}


def test_models_are_called_as_the_papers_do():
    assert published.model_name(dict(type='VMamba', arch='small_s2l15', out_indices=(3,))) == 'VMamba-S s2l15'
    assert published.model_name(dict(type='mmvmamba.VMamba', arch='base_v0')) == 'VMamba-B vanilla'
    assert (
        published.model_name(dict(type=VMamba, arch='tiny_s1l8', drop_path_rate=0.1, frozen_stages=4))
        == 'VMamba-T s1l8'
    )
    assert published.model_name(dict(type='VMamba', arch='tiny_s1l8', embed_dims=8)) is None
    assert published.model_name(dict(type='FastVim', arch='tiny')) is None


@pytest.mark.parametrize('size', [224, 288])
def test_published_flops_of_the_resolution_table_are_counted(size):
    """In full at 224; the other sizes of the table grow with it."""
    model = classifier_benchmark.Classifier(VMamba('tiny_s1l8', out_indices=(3,)))
    counted = complexity(model, torch.zeros(1, 3, size, size))
    row = published.table('resolution').row(model='VMamba-T s1l8', size=size)
    assert round(counted.flops / 1e9, 2) == row['gflops']
    if size == 224:
        exact = published.table('models').row(model='VMamba-T s1l8')
        assert (counted.parameters, counted.flops / 1e9) == (exact['parameters'], exact['gflops'])


def test_ablation_rows(monkeypatch):
    """Every published row, on a network of a fifth of the channels."""
    monkeypatch.setattr(
        classifier_benchmark,
        'VMamba',
        lambda arch, **options: VMamba(arch, embed_dims=16, depths=(1, 1, 1, 1), **options),
    )
    rows = classifier_benchmark.routes(32, 1, 1)
    assert len(rows) == 8
    assert rows[0]['VMamba-T s1l8'] == 'routes unidi, conv_size 3'
    assert [row['published top-1'] for row in rows[:2]] == [82.26, 80.88]
    assert float(rows[0]['GFLOPs']) >= float(rows[1]['GFLOPs'])
    assert [row['published top-1'] for row in classifier_benchmark.ssm_init(32, 1, 1)] == [82.60, 82.58, 82.67]
