"""`tools/export.py` and `tools/onnx_demo.py` as users run them: a segmentor, a classifier, a wrong decomposition."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmvmamba.kernels.selective_scan import decomposed
from PIL import Image
from tool_runs import load_tool

from mmvmamba.deploy.modules import exportable

onnx_ir = pytest.importorskip('onnx_ir')
pytest.importorskip('onnxruntime')

SEGMENTOR = """
default_scope = 'mmseg'
norm = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True),
    backbone=dict(type='mmvmamba.VMamba', embed_dims=16, depths=(1, 1), out_indices=(0, 1)),
    decode_head=dict(type='UPerHead', in_channels=[16, 32], in_index=[0, 1], channels=8, num_classes=3, norm_cfg=norm),
    test_cfg=dict(mode='whole'),
)
test_dataloader = dict(
    dataset=dict(
        type='BaseSegDataset',
        metainfo=dict(classes=('a', 'b', 'c'), palette=[[255, 0, 0], [0, 255, 0], [0, 0, 255]]),
    )
)
"""
CLASSIFIER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True),
    backbone=dict(type='mmvmamba.VMamba', embed_dims=16, depths=(1, 1), out_indices=(1,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=32),
)
"""


@pytest.fixture(autouse=True)
def _no_leaking_scope():
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / 'picture.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(path)
    return path


def config_and_checkpoint(text, tmp_path):
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'weights.pth'
    config.write_text(text)
    names = {}
    exec(text, names)
    init_default_scope(names['default_scope'])
    torch.save({'state_dict': MODELS.build(names['model']).state_dict()}, checkpoint)
    return str(config), str(checkpoint)


def test_segmentor_from_config_to_picture(tmp_path, picture, capsys):
    config, checkpoint = config_and_checkpoint(SEGMENTOR, tmp_path)
    out = tmp_path / 'model.onnx'
    assert load_tool('export').main([config, checkpoint, '--out', str(out), '--check', str(picture)]) == 0
    said = capsys.readouterr().out
    assert '333 x 517' in said
    assert 'each by itself' in said
    drawn = tmp_path / 'drawn.png'
    assert load_tool('onnx_demo').main([str(picture), str(out), '--side', '64', '--out', str(drawn)]) == 0
    assert Image.open(drawn).size == (410, 320)  # 82 x 64, legible
    assert 'a ' in capsys.readouterr().out


def test_classifier(tmp_path, picture, capsys):
    pytest.importorskip('mmpretrain')
    config, checkpoint = config_and_checkpoint(CLASSIFIER, tmp_path)
    out = tmp_path / 'model.onnx'
    assert load_tool('export').main([config, checkpoint, '--shape', '64', '80', '--out', str(out)]) == 0
    (image,) = onnx_ir.load(out).graph.inputs
    assert list(image.shape) == [1, 3, 64, 80]
    capsys.readouterr()
    assert load_tool('onnx_demo').main([str(picture), str(out), '--out', str(tmp_path / 'drawn.png')]) == 0
    assert Image.open(tmp_path / 'drawn.png').size == (400, 320)
    assert sum(line.startswith('class ') for line in capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize('text', [SEGMENTOR, CLASSIFIER], ids=['segmentor', 'classifier'])
@pytest.mark.parametrize('swapped', [True, False])
def test_normalised_as_the_toolbox_does(text, swapped):
    if text is CLASSIFIER:
        pytest.importorskip('mmpretrain')
    names = {}
    exec(text, names)
    preprocessor = names['model']['data_preprocessor']
    preprocessor['mean'] = [100.0, 110.0, 120.0]
    preprocessor['bgr_to_rgb' if text is SEGMENTOR else 'to_rgb'] = swapped
    init_default_scope(names['default_scope'])
    model = MODELS.build(names['model'])
    read = torch.randint(0, 256, (3, 8, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))  # BGR
    given = {'inputs': [read] if text is SEGMENTOR else read[None]}
    expected = model.data_preprocessor(given)['inputs']
    torch.testing.assert_close(exportable(model).module.normalised(read.flip(0)[None].float()), expected)


def test_wrong_decomposition_fails(tmp_path, monkeypatch, capsys):
    """Chunks that all start from nothing: a mistake that only positions behind the first row show."""
    monkeypatch.setattr(decomposed, '_starts', lambda decay, ends: torch.zeros_like(ends))
    config, checkpoint = config_and_checkpoint(SEGMENTOR, tmp_path)
    arguments = [config, checkpoint, '--what', 'backbone', '--shape', '64', '64', '--out', str(tmp_path / 'model.onnx')]
    assert load_tool('export').main(arguments) == 1
    assert 'do not use it' in capsys.readouterr().err


def test_what_is_refused(tmp_path, capsys):
    tool = load_tool('export')
    (tmp_path / 'config.py').write_text("default_scope = 'mmocr'\n")
    assert tool.main([str(tmp_path / 'config.py'), '--out', str(tmp_path / 'model.onnx')]) == 2
    assert 'mmocr' in capsys.readouterr().err
    for refused in (['model.pb'], ['model.onnx', '--aot-inductor'], ['model.pt2', '--aot-inductor']):
        with pytest.raises(SystemExit):
            tool.main(['config.py', '--out', *refused])
    assert load_tool('onnx_demo').main([str(tmp_path / 'none.png'), str(tmp_path / 'none.onnx')]) == 2


def test_the_runner_needs_no_torch():
    tree = ast.parse(Path('tools/onnx_demo.py').read_text())
    imported = {
        name.split('.')[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported == {'argparse', 'json', 'sys', 'pathlib', 'numpy', 'onnxruntime', 'PIL'}
