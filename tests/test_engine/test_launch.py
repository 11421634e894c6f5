"""What the tools do between a command line and a runner."""

import argparse

import pytest
import torch
from mmcv.ops import SyncBatchNorm
from mmdet.models import DetTTAModel
from mmengine.config import Config, ConfigDict
from mmengine.model import MMDistributedDataParallel, MMFullyShardedDataParallel
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from tool_runs import load_tool

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


@pytest.mark.parametrize('value', ["custom_hooks=[dict(type='EMAHook',momentum=0.1)]", 'a.b', 'a=[1,2'])
def test_options_that_mmengine_cannot_read_are_refused_in_words(value, capsys):
    parser = argparse.ArgumentParser()
    launch.add_arguments(parser)
    read = parser.parse_args(['--cfg-options', 'a=1', 'b=[2,(x,3)]']).cfg_options
    assert read == {'a': 1, 'b': [2, ('x', 3)]}
    with pytest.raises(SystemExit):
        parser.parse_args(['--cfg-options', 'a=1', value])
    said = capsys.readouterr().err
    assert f'--cfg-options {value}: expected KEY=VALUE' in said
    assert 'goes into a config of your own' in said


def test_config_of_neither_toolbox_is_refused():
    with pytest.raises(ValueError, match=r"default_scope='mmpose'.*'mmdet', 'mmseg', 'mmpretrain'"):
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


@pytest.mark.parametrize(
    'type_',
    ['SyncBN', 'mmengine.SyncBN', 'MMSyncBN', 'torch.nn.SyncBatchNorm', torch.nn.SyncBatchNorm, SyncBatchNorm],
)
def test_synchronised_norm_is_found_however_it_is_written(type_):
    model = dict(head=dict(type='Head', norm_cfg=dict(type=type_, requires_grad=True)))
    cfg = Config(dict(model=model, work_dir='w'), filename=__file__)
    launch.prepare(cfg, 'none', None)
    assert cfg.model.head.norm_cfg == dict(type='BN', requires_grad=True)
    assert cfg.model.head.type == 'Head'


def on_cpus(monkeypatch, **entries) -> Config:
    """A config after it was prepared for several processes without GPUs."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    cfg = Config(dict(model=dict(), work_dir='w', **entries))
    launch.prepare(cfg, 'pytorch', None)
    return cfg


def test_what_mmengine_reads_beside_its_own_wrapper_is_kept_on_cpus(monkeypatch):
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    cfg = on_cpus(monkeypatch)
    assert cfg.model_wrapper_cfg == dict(wrapper, find_unused_parameters=False)
    assert cfg.env_cfg.dist_cfg.backend == 'gloo'
    assert on_cpus(monkeypatch, find_unused_parameters=True).model_wrapper_cfg.find_unused_parameters
    assert 'sync_bn' not in on_cpus(monkeypatch, sync_bn='torch')
    assert on_cpus(monkeypatch, env_cfg=dict(cudnn_benchmark=True)).env_cfg.cudnn_benchmark


@pytest.mark.parametrize('type_', [{}, dict(type='MMDistributedDataParallel'), dict(type=MMDistributedDataParallel)])
def test_a_wrapper_of_the_users_own_gets_no_gpu(type_, monkeypatch):
    cfg = on_cpus(monkeypatch, model_wrapper_cfg=dict(**type_, detect_anomalous_params=True))
    assert cfg.model_wrapper_cfg.detect_anomalous_params
    assert cfg.model_wrapper_cfg.device_ids is None
    sharded = dict(type=MMFullyShardedDataParallel)
    assert on_cpus(monkeypatch, model_wrapper_cfg=sharded).model_wrapper_cfg == sharded


def test_strategies_are_told_that_there_is_no_gpu(monkeypatch):
    from mmengine._strategy import DDPStrategy, FSDPStrategy

    for type_ in ('FSDPStrategy', 'mmengine.FSDPStrategy', FSDPStrategy):
        strategy = on_cpus(monkeypatch, strategy=dict(type=type_, state_dict_cfg='full')).strategy
        assert strategy.model_wrapper.device_id == 'cpu'
        assert strategy.state_dict_cfg.state_dict_config.offload_to_cpu is False
    for type_ in ('DDPStrategy', DDPStrategy):
        strategy = on_cpus(monkeypatch, strategy=dict(type=type_, sync_bn='torch')).strategy
        assert strategy.model_wrapper.device_ids is None
        assert 'sync_bn' not in strategy


@pytest.mark.parametrize(
    'type_', ['mmengine.OptimWrapper', OptimWrapper, AmpOptimWrapper, 'mmvmamba.CpuAmpOptimWrapper']
)
def test_amp_takes_wrappers_however_they_are_written(type_, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    cfg = Config(dict(optim_wrapper=dict(type=type_)))
    launch.enable_amp(cfg, 'bf16')
    assert cfg.optim_wrapper.type == 'mmvmamba.CpuAmpOptimWrapper'


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


@pytest.mark.parametrize('dtype, scaled', [('float16', True), ('bfloat16', False)])
def test_a_config_in_mixed_precision_trains_on_a_cpu(dtype, scaled, monkeypatch, tmp_path):
    """mmengine's wrapper insists on a GPU."""
    wrapper = dict(type='AmpOptimWrapper', dtype=dtype, loss_scale='dynamic', optimizer=dict(type='SGD', lr=0.1))
    for gpu, expected in ((True, wrapper), (False, None)):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda gpu=gpu: gpu)
        cfg = Config(dict(model=dict(), optim_wrapper=wrapper))
        launch.prepare(cfg, 'none', str(tmp_path))
        if expected is not None:
            assert cfg.optim_wrapper == expected
    assert cfg.optim_wrapper.type == 'mmvmamba.CpuAmpOptimWrapper'
    assert (cfg.optim_wrapper.dtype, cfg.optim_wrapper.loss_scale) == (dtype, dict(enabled=scaled))
    built = build_optim_wrapper(torch.nn.Linear(2, 2), cfg.optim_wrapper)
    with built.optim_context(torch.nn.Linear(2, 2)):
        assert torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype == getattr(torch, dtype)


def test_tta_wraps_the_model_and_says_what_is_missing():
    cfg = Config(dict(model=dict(type='M'), test_dataloader=dict(dataset=dict(pipeline=[1]))))
    with pytest.raises(ValueError, match='has no tta_model'):
        launch.enable_tta(cfg)
    cfg.tta_model, cfg.tta_pipeline = ConfigDict(type='TTA'), [2]
    launch.enable_tta(cfg)
    assert cfg.model == dict(type='TTA', module=dict(type='M'))
    assert cfg.test_dataloader.dataset.pipeline == [2]


def resized(*scales):
    return [dict(type='TestTimeAug', transforms=[[dict(type='Resize', scale=scale) for scale in scales]])]


@pytest.mark.parametrize('wrapped', [False, True])
def test_tta_far_from_the_test_scale_is_refused(wrapped):
    dataset = dict(type='D', pipeline=[dict(type='mmdet.Resize', scale=(224, 128))])
    if wrapped:
        dataset = dict(type='ConcatDataset', datasets=[dict(type='RepeatDataset', dataset=dataset)])
    entries = dict(model=dict(type='M'), tta_model=dict(type='TTA'), test_dataloader=dict(dataset=dataset))
    cfg = Config(dict(entries, tta_pipeline=resized((1333, 640), (1333, 800))), filename=__file__)
    with pytest.raises(ValueError, match=r'scale \(224, 128\).*\(1333, 640\), \(1333, 800\).*tta_pipeline of its own'):
        launch.enable_tta(cfg)
    assert cfg.model == dict(type='M'), 'a refusal changes nothing'
    cfg = Config(dict(entries, tta_pipeline=resized((1333, 640), (288, 160))))
    launch.enable_tta(cfg)
    inner = cfg.test_dataloader.dataset
    inner = inner.datasets[0].dataset if wrapped else inner
    assert inner.pipeline == cfg.tta_pipeline
    assert 'pipeline' not in cfg.test_dataloader.dataset or not wrapped


def test_tta_of_unknown_scales_is_left_alone():
    entries = dict(model=dict(type='M'), tta_model=dict(type='TTA'), tta_pipeline=resized((64, 64)))
    for pipeline in ([], [dict(type='Resize', scale_factor=0.5)], [dict(type='Pad', size=(999, 999))]):
        launch.enable_tta(Config(dict(entries, test_dataloader=dict(dataset=dict(pipeline=pipeline)))))


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('bare', [False, True])
def test_every_image_is_drawn(scope, bare, tmp_path):
    there = dict(
        default_hooks=dict(visualization=dict(type='VisualizationHook', interval=50, score_thr=0.1)),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='TensorboardVisBackend')], name='v'),
    )
    cfg = Config(dict(default_scope=scope, **({} if bare else there)))
    launch.draw_predictions(cfg, str(tmp_path / 'pictures'))
    hook = cfg.default_hooks.visualization
    assert (hook.draw, hook.interval) == (True, 1)
    assert bare or hook.score_thr == 0.1
    folder = hook.test_out_dir if scope == 'mmdet' else cfg.visualizer.save_dir
    assert folder == str(tmp_path / 'pictures')
    kinds = [backend.type for backend in cfg.visualizer.vis_backends]
    assert ('LocalVisBackend' in kinds) == (scope == 'mmseg')


PURE_PYTHON = """
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.models import DetTTAModel
from mmdet.visualization import DetLocalVisualizer
from mmengine._strategy import FSDPStrategy
from mmengine.model import MMDistributedDataParallel, MMFullyShardedDataParallel
from mmengine.visualization import LocalVisBackend
from mmseg.evaluation import IoUMetric

default_scope = 'mmdet'
work_dir = 'w'
model = dict(type=DetTTAModel)
tta_model = dict(type=DetTTAModel)
tta_pipeline = [dict(type=DetTTAModel)]
test_dataloader = dict(dataset=dict(type=DetTTAModel))
test_evaluator = dict(type=IoUMetric)
default_hooks = dict(visualization=dict(type=DetVisualizationHook))
visualizer = dict(type=DetLocalVisualizer, vis_backends=[dict(type=LocalVisBackend)])
model_wrapper_cfg = dict(type=MMDistributedDataParallel)
strategy = dict(type=FSDPStrategy, model_wrapper=dict(type=MMFullyShardedDataParallel))
"""


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_what_is_changed_of_a_config_in_pure_python_can_be_written_down(scope, tmp_path, monkeypatch):
    """The original mmengine writes names of classes, as such a config holds them, and fails at classes."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    (tmp_path / 'mine.py').write_text(PURE_PYTHON)
    cfg = launch.load_config(tmp_path / 'mine.py', dict(default_scope=scope))
    launch.prepare(cfg, 'pytorch', None)
    launch.draw_predictions(cfg, 'pictures')
    cfg.test_evaluator = load_tool('test').save_predictions(cfg.test_evaluator, scope, 'out.pkl')
    launch.enable_tta(cfg)
    assert cfg.model_wrapper_cfg.device_ids is None
    assert cfg.strategy.model_wrapper.device_id == 'cpu'
    assert cfg.default_hooks.visualization.draw
    assert cfg.model.module.type is cfg.model.type is DetTTAModel
    assert not list(classes(cfg._cfg_dict))
    cfg.dump(tmp_path / 'written.py')
    assert 'DetTTAModel' in (tmp_path / 'written.py').read_text()


def classes(node):
    """The classes in a config, whose values are read past what turns names into them."""
    if isinstance(node, dict):
        node = list(dict.values(node))
    if isinstance(node, (list, tuple)):
        for each in node:
            yield from classes(each)
    elif isinstance(node, type):
        yield node
