"""What the tools do between a command line and a runner."""

import pytest
import torch
from mmengine.config import Config, ConfigDict

from mmvmamba.engine import launch


def test_unknown_config_lists_what_is_there(tmp_path):
    (tmp_path / 'upernet_x.py').write_text('a = 1')
    with pytest.raises(FileNotFoundError, match=r'Nearest: .*upernet_x\.py'):
        launch.load_config(tmp_path / 'upernet_y.py')
    with pytest.raises(FileNotFoundError, match=r'Configs in .*: upernet_x\.py'):
        launch.load_config(tmp_path / 'qqq.py')


def test_options_are_merged(tmp_path):
    path = tmp_path / 'c.py'
    path.write_text('a = dict(b=1)')
    assert launch.load_config(path, {'a.b': 2}).a.b == 2


def test_config_of_neither_toolbox_is_refused():
    with pytest.raises(ValueError, match=r"default_scope='mmpose'.*'mmdet' or 'mmseg'"):
        launch.task_of(Config(dict(default_scope='mmpose')))


def test_missing_data_of_wrapped_datasets_is_listed_once(tmp_path):
    inner = dict(data_root=str(tmp_path), ann_file='a.json', data_prefix=dict(img='images'))
    cfg = Config(
        dict(
            default_scope='mmdet',
            train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=inner)),
            val_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=[inner])),
            val_evaluator=[dict(ann_file=str(tmp_path / 'a.json'))],
        )
    )
    with pytest.raises(FileNotFoundError) as caught:
        launch.check_data(cfg, ('train', 'val'))
    text = str(caught.value)
    assert text.count('does not exist (train_dataloader.dataset.dataset.ann_file)') == 1
    assert f'{tmp_path}/images\n  error: does not exist (train_dataloader.dataset.dataset.img)' in text
    assert 'does not exist (val_evaluator[0].ann_file)' in text
    assert 'data/coco/{train2017,val2017,annotations}' in text
    (tmp_path / 'a.json').write_text('{}')
    (tmp_path / 'images').mkdir()
    launch.check_data(cfg, ('train', 'val'))


def test_remote_data_is_left_to_its_backend():
    dataset = dict(data_root='s3://bucket/coco', ann_file='a.json', data_prefix=dict(img='images'))
    launch.check_data(Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dataset))), ('train',))


def test_a_cpu_gets_gloo_and_plain_batch_norm(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    model = dict(head=dict(norm_cfg=dict(type='SyncBN')), heads=[dict(norm_cfg=dict(type='SyncBN'))])
    path = tmp_path / 'some_name.py'
    path.write_text('')
    cfg = Config(dict(model=model, env_cfg=dict(dist_cfg=dict(backend='nccl'))), filename=path)
    launch.prepare(cfg, 'pytorch', None)
    assert cfg.env_cfg.dist_cfg.backend == 'gloo'
    assert cfg.work_dir == 'work_dirs/some_name'
    assert cfg.model.head.norm_cfg.type == cfg.model.heads[0].norm_cfg.type == 'BN'


def test_amp_sets_the_wrapper(monkeypatch):
    for cuda, wrapper in ((True, 'AmpOptimWrapper'), (False, 'mmvmamba.CpuAmpOptimWrapper')):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda cuda=cuda: cuda)
        for precision, dtype in (('bf16', 'bfloat16'), ('fp16', 'float16')):
            cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper')))
            launch.enable_amp(cfg, precision)
            scaling = dict(enabled=precision == 'fp16')
            assert cfg.optim_wrapper == dict(type=wrapper, dtype=dtype, loss_scale=scaling)
    with pytest.raises(ValueError, match=r"--amp: 'fp8' is unknown; expected one of"):
        launch.enable_amp(Config(dict(optim_wrapper=dict(type='OptimWrapper'))), 'fp8')
    with pytest.raises(ValueError, match=r"optim_wrapper\.type is 'ApexOptimWrapper'"):
        launch.enable_amp(Config(dict(optim_wrapper=dict(type='ApexOptimWrapper'))), 'fp16')


def test_tta_wraps_the_model_and_says_what_is_missing():
    cfg = Config(dict(model=dict(type='M'), test_dataloader=dict(dataset=dict(pipeline=[1]))))
    with pytest.raises(ValueError, match='has no tta_model'):
        launch.enable_tta(cfg)
    cfg.tta_model, cfg.tta_pipeline = ConfigDict(type='TTA'), [2]
    launch.enable_tta(cfg)
    assert cfg.model == dict(type='TTA', module=dict(type='M'))
    assert cfg.test_dataloader.dataset.pipeline == [2]
