"""Configs as users write them: on top of a toolbox's own, in pure Python, with imports of their own."""

import sys

import pytest
from mmengine import registry as root
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from tool_runs import DETECTION, SEGMENTATION, dumpable, load_tool

CONFIGS = {'detection': DETECTION, 'segmentation': SEGMENTATION}


@pytest.fixture(autouse=True)
def _no_leaking_scope():
    yield
    DefaultScope._instance_dict.clear()


def small(task, shapes) -> Config:
    """A demo config that trains three iterations in this process."""
    cfg = dumpable(CONFIGS[task], shapes)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
        cfg[f'{split}_dataloader'].dataset.indices = 6 if split == 'train' else 1
    if task == 'detection':
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
    else:
        cfg.train_cfg.update(max_iters=3, val_interval=3)
    return cfg


def train_and_test(config, work_dir, capsys, *test_options) -> str:
    """Run both tools on a config; returns what the test printed."""
    assert load_tool('train').main([str(config), '--work-dir', str(work_dir)]) == 0
    capsys.readouterr()
    checkpoint = (work_dir / 'last_checkpoint').read_text().strip()
    assert load_tool('test').main([str(config), checkpoint, '--work-dir', str(work_dir), *test_options]) == 0
    said = capsys.readouterr()
    return said.out + said.err


class PurePython:
    """Text of a config in mmengine's new style: imported classes in place of names."""

    def __init__(self, cfg: Config):
        init_default_scope(cfg.default_scope)
        self.scope, self.classes = cfg.default_scope, {}
        entries = {key: value for key, value in cfg.items() if key != 'custom_imports'}
        lines = [f'{key} = {self.literal(value)}' for key, value in entries.items()]
        imports = [f'from {cls.__module__} import {cls.__name__} as {name}' for name, cls in self.classes.items()]
        self.text = '\n'.join([*imports, *lines, ''])

    def literal(self, value) -> str:
        if isinstance(value, dict):
            items = (f'{k!r}: {self.type(v) if k == "type" else self.literal(v)}' for k, v in value.items())
            return '{' + ', '.join(items) + '}'
        if isinstance(value, (list, tuple)):
            items = ''.join(f'{self.literal(each)}, ' for each in value)
            return f'[{items}]' if isinstance(value, list) else f'({items})'
        return repr(value)

    def type(self, name: str) -> str:
        nodes = [node for node in vars(root).values() if isinstance(node, root.Registry)]
        scoped = [name] if '.' in name else [f'{self.scope}.{name}', name]
        cls = next((cls for key in scoped for node in nodes if (cls := node.get(key)) is not None), None)
        if cls is None:  # a function of mmcv.ops
            return repr(name)
        self.classes[f'{name.rpartition(".")[2]}_'] = cls
        return f'{name.rpartition(".")[2]}_'


@pytest.mark.parametrize('task', CONFIGS)
def test_pure_python_configs_train_and_test(task, shapes, tmp_path, capsys):
    """A child that reads a base; every `type` is a class, and no custom_imports are run."""
    written = PurePython(small(task, shapes))
    assert len(written.classes) > 30
    (tmp_path / 'base.py').write_text(written.text)
    (tmp_path / 'child.py').write_text(
        'from mmengine.config import read_base\n'
        'with read_base():\n'
        '    from .base import *\n'
        'from mmvmamba.models import VMamba\n'
        'model.update(backbone=dict(type=VMamba, arch="tiny_s1l8", embed_dims=8, depths=(1, 1, 1, 1)))\n'
    )
    cfg = Config.fromfile(tmp_path / 'child.py')
    assert cfg.model.backbone.type.__name__ == 'VMamba'
    assert cfg.train_dataloader.dataset.type.__name__.startswith('Checked')
    said = train_and_test(tmp_path / 'child.py', tmp_path / 'work', capsys, '--tta')
    assert ('segm_mAP' if task == 'detection' else 'mIoU') in said


def test_imports_of_the_users_own_replace_ours(shapes, tmp_path, monkeypatch):
    """Inheritance replaces lists, `custom_imports` among them."""
    (tmp_path / 'module_of_mine.py').write_text('')
    monkeypatch.syspath_prepend(tmp_path)
    small('segmentation', shapes).dump(tmp_path / 'base.py')
    (tmp_path / 'child.py').write_text("_base_ = './base.py'\ncustom_imports = dict(imports=['module_of_mine'])\n")
    assert load_tool('train').main([str(tmp_path / 'child.py'), '--work-dir', str(tmp_path / 'work')]) == 0
    assert 'module_of_mine' in sys.modules


@pytest.mark.parametrize('name', ['retinanet', 'deformable_detr', 'segformer'])
def test_models_on_top_of_the_toolboxes_own_configs_train(name, shapes, tmp_path):
    """A sample of `tools/toolbox_check.py`, which knows sixteen more."""
    wrong = load_tool('toolbox_check').check(name, shapes, tmp_path)
    assert not wrong, (tmp_path / 'output.txt').read_text()[-3000:]


def test_the_check_knows_classifiers(shapes, tmp_path):
    """Their configs alone: heads, batch augmentation and labels all count the classes of the shapes."""
    pytest.importorskip('mmpretrain')
    check = load_tool('toolbox_check')
    for name in ('averaged', 'csra'):
        text = check.child_of(check.MODELS[name], shapes, tmp_path)
        (tmp_path / f'{name}.py').write_text(text)
        cfg = Config.fromfile(tmp_path / f'{name}.py')
        assert cfg.model.backbone.type == 'mmvmamba.VMamba'
        assert cfg.model.head.num_classes == 5
        assert cfg.data_preprocessor.get('num_classes', 5) == 5
        assert (tmp_path / cfg.train_dataloader.dataset.ann_file).read_text()
    assert [hook.type for hook in Config.fromfile(tmp_path / 'averaged.py').custom_hooks] == ['EMAHook']


def test_the_check_says_what_fails(shapes, tmp_path, monkeypatch, capsys):
    check = load_tool('toolbox_check')
    monkeypatch.setattr(
        check, 'MODELS', {'gone': check.Model('mmdet', 'gone/gone.py'), 'other': check.Model('mm', 'x')}
    )
    assert check.main(['--data', str(shapes), '--work-dir', str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert 'FAILED: none of' in said
    assert 'FAILED: mm is not installed' in said
    assert check.judge(tmp_path, evaluates=True) == '0 iterations, expected 3'
