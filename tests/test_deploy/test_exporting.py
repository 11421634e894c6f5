"""Files of tiny networks: every family, ONNX and torch.export, and how the steps of the recurrence grow."""

import shutil

import numpy as np
import pytest
import torch
from mmvmamba.kernels.selective_scan import decomposed
from torch import nn

from mmvmamba.analysis import export_benchmark
from mmvmamba.deploy import alone, checking, exporting, modules
from mmvmamba.models import FastVim, VMamba

onnx_ir = pytest.importorskip('onnx_ir')
pytest.importorskip('onnxruntime')

TINY = {
    'vmamba': lambda: VMamba(embed_dims=16, depths=(1,), out_indices=(0,)),
    'vanilla': lambda: VMamba('tiny_v0', embed_dims=16, depths=(1,), d_state=3, out_indices=(0,)),
    'fastvim': lambda: FastVim(embed_dims=16, depth=1, d_state=3, img_size=64, out_indices=(0,)),
}


def tiny(name) -> modules.Exportable:
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = TINY[name]()
    return modules.exportable(model, 'backbone')


@pytest.fixture(scope='module', params=TINY)
def exported(request, tmp_path_factory):
    """A network and its ONNX file; an export takes seconds."""
    what, path = tiny(request.param), tmp_path_factory.mktemp('onnx') / f'{request.param}.onnx'
    assert exporting.to_onnx(what, path) < 1e-5
    return what, path


def test_onnx_at_any_size(exported):
    what, path = exported
    rows = checking.check(what, checking.runner(path, 'onnx'), sizes=((64, 64), (37, 90), (131, 33)))
    assert [row.size for row in rows if not row.passed] == []
    model = onnx_ir.load(path)
    assert {node.domain for node in model.graph.all_nodes()} == {''}
    assert [value.name for value in model.graph.outputs] == list(what.outputs)
    assert model.metadata_props['mmvmamba.task'] == 'backbone'


def test_program_at_any_size(tmp_path):
    what, path = tiny('fastvim'), tmp_path / 'model.pt2'
    assert exporting.to_program(what, path) < 1e-5
    operators = {str(node.target) for node in torch.export.load(path).graph.nodes}
    assert not any(operator.startswith('mmvmamba') for operator in operators)
    rows = checking.check(what, checking.runner(path, 'program'), sizes=((64, 64), (70, 90)))
    assert [row.size for row in rows if not row.passed] == []


def test_steps_grow_like_the_square_root_of_the_pixels(exported, tmp_path):
    """Nothing is unrolled: one file, whose scans take twice the steps for four times the pixels."""
    what, path = exported
    model = onnx_ir.load(path)
    scans = [node for node in model.graph if node.op_type == 'Scan']
    assert scans
    assert 'Loop' not in {node.op_type for node in model.graph.all_nodes()}
    model.graph.outputs.extend(scan.inputs[-1] for scan in scans)
    onnx_ir.save(model, tmp_path / 'steps.onnx')
    run = checking.runner(tmp_path / 'steps.onnx', 'onnx')

    def steps(side):
        return sum(len(walked) for walked in run(np.zeros((1, 3, side, side), np.float32))[len(what.outputs) :])

    counted = [steps(side) for side in (64, 128, 256)]
    assert counted[1:] == [2 * counted[0], 4 * counted[0]]
    # none is longer than a side of the largest grid
    assert counted[0] <= 16 * len(scans)


@pytest.mark.parametrize('exported', ['fastvim'], indirect=True)
def test_benchmark(exported, monkeypatch):
    """A row says what is measured; the export itself is the fixture's."""
    what, path = exported
    monkeypatch.setattr(export_benchmark, 'BACKBONES', {'tiny': lambda backend: what.module.backbone})
    monkeypatch.setattr(export_benchmark, '_EXACT', ((64, 64), (37, 90)))
    monkeypatch.setattr(export_benchmark, '_MEMORY', ((64, 64),))
    monkeypatch.setattr(export_benchmark, '_SIDE', 64)
    monkeypatch.setattr(exporting, 'to_onnx', lambda what, out: shutil.copy(path, out))
    (row,) = export_benchmark.export(repeat=1, models=['tiny'])
    assert row.pop('backbone') == 'tiny'
    assert all(float(row[size]) < 1e-5 for size in ('64 x 64', '37 x 90'))
    assert float(row['file / weights']) > 1
    assert float(row['GB, 64 x 64']) > 0.01
    assert set(row) > {'onnxruntime s', 'cpu s', 'torch s', 'onnxruntime / cpu', 'export s'}


def test_adaptive_pooling_is_exact():
    for sides in (1, 3, (2, 5)):
        pool = nn.AdaptiveAvgPool2d(sides)
        model = nn.Sequential(pool)
        x = torch.randn(2, 3, 11, 17)
        torch.testing.assert_close(modules._exact(model)(x), pool(x))


def test_a_difference_is_seen():
    what = tiny('vmamba')

    def wrong(image):
        with torch.no_grad():
            maps = [t.numpy() for t in what.module(torch.from_numpy(image))]
        maps[0][0, 0, 0, 0] += 1e-2 * np.abs(maps[0]).max()
        return maps

    (row,) = checking.check(what, wrong, sizes=((64, 64),))
    assert not row.passed
    (row,) = checking.check(what, lambda image: [m * np.nan for m in wrong(image)], sizes=((64, 64),))
    assert not row.passed


def test_a_wrong_operator_is_seen(monkeypatch):
    """Chunks that all start from nothing, which the maps of a fresh network hardly show."""
    image = torch.zeros(1, 3, 64, 64)
    assert alone.decomposed(tiny('vmamba').module, image) < 1e-5
    monkeypatch.setattr(decomposed, '_starts', lambda decay, ends: torch.zeros_like(ends))
    assert alone.decomposed(tiny('vmamba').module, image) > 1e-2
