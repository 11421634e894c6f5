"""Published weights through the tools, as users run them; small files stand in for the authors'."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from tool_runs import ROOT, SEGMENTATION, load_tool, run_tool, tiny

from mmvmamba.checkpoints import published
from mmvmamba.models import VMamba

NOWHERE = 'http://127.0.0.1:9'  # where nobody answers
FROM_NAME = [
    'model.backbone.init_cfg.type=Pretrained',
    'model.backbone.init_cfg.checkpoint=mmvmamba://vmamba_tiny_s1l8',
]


@pytest.fixture(scope='module')
def on_shapes(shapes, tmp_path_factory):
    """The headline config with the small data set in the place of COCO."""
    path = tmp_path_factory.mktemp('config') / 'maskrcnn_vmamba_t_shapes.py'
    dataset = f"dataset=dict(data_root='{shapes}/coco/', metainfo=metainfo)"
    ann_file = f'{shapes}/coco/annotations/instances_val2017.json'
    path.write_text(f"""
_base_ = '{ROOT}/configs/maskrcnn_vmamba_t.py'
metainfo = dict(classes=('circle', 'triangle', 'square', 'star', 'cross'))
model = dict(roi_head=dict(bbox_head=dict(num_classes=5), mask_head=dict(num_classes=5)))
train_dataloader = dict({dataset})
val_dataloader = dict({dataset})
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{ann_file}')
test_evaluator = val_evaluator
""")
    return path


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A folder with a classifier of the demos' size under its published name."""
    folder = tmp_path_factory.mktemp('published')
    torch.manual_seed(5)
    body = VMamba('tiny_s1l8', embed_dims=8, depths=(1, 1, 1, 1)).state_dict()
    body = {name: value for name, value in body.items() if not name.startswith('outnorm')}
    head = {'classifier.norm.weight': torch.ones(64), 'classifier.head.weight': torch.ones(10, 64)}
    torch.save({'model': body | head, 'epoch': 264}, folder / published()['vmamba_tiny_s1l8'].file)
    return folder


def log_of(work_dir) -> str:
    (path,) = work_dir.glob('*/*.log')
    return path.read_text()


def test_weights_that_cannot_be_had_stop_training_before_any_work(on_shapes, tmp_path):
    start = time.monotonic()
    environment = dict(MMVMAMBA_MIRROR=NOWHERE, TORCH_HOME=str(tmp_path / 'cache'))
    done = run_tool('train.py', on_shapes, '--work-dir', tmp_path / 'work', **environment)
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    assert time.monotonic() - start < 60, 'of which nearly all goes into importing the toolboxes'
    file = published()['vmamba_tiny_s1l8'].file
    assert (
        'train.py: the weights mmvmamba://vmamba_tiny_s1l8 cannot be had: the server cannot be reached' in done.stderr
    )
    for words in (
        f'file:    {file}',
        f'address: {NOWHERE}/{file}',
        f'put the file into {tmp_path}/cache/hub/checkpoints',
    ):
        assert words in done.stderr
    assert 'without: --from-scratch trains from random weights' in done.stderr
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'work').exists()


def train(shapes, work_dir, *arguments, options=(), **environment):
    short = ['train_cfg.max_iters=1', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1']
    return run_tool(
        'train.py', SEGMENTATION, '--work-dir', work_dir, *arguments,
        '--cfg-options', *tiny(SEGMENTATION, shapes), *short, *options, MMVMAMBA_OFFLINE='1', **environment,
    )  # fmt: skip


@pytest.fixture(scope='module')
def started(shapes, files, tmp_path_factory):
    """The work folder of a training that began with a name and did not move."""
    work_dir = tmp_path_factory.mktemp('started')
    still = ['optim_wrapper.optimizer.lr=0', 'param_scheduler=None']
    done = train(shapes, work_dir, options=[*FROM_NAME, *still], MMVMAMBA_WEIGHTS=str(files))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return work_dir


def test_training_starts_from_a_name(started, files):
    expected = torch.load(files / published()['vmamba_tiny_s1l8'].file, weights_only=True)['model']
    found = torch.load(started / 'iter_1.pth', weights_only=False)['state_dict']
    names = [name for name in expected if not name.startswith('classifier.')]
    assert len(names) > 40
    assert all(torch.equal(found[f'backbone.{name}'], expected[name]) for name in names)
    assert 'from scratch' not in log_of(started)


def test_from_scratch_is_said_first(shapes, tmp_path):
    done = train(shapes, tmp_path, '--from-scratch', options=FROM_NAME)  # offline, and no file anywhere
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert 'from scratch: training starts from random weights (--from-scratch)' in log_of(tmp_path).splitlines()[0]


def test_fine_tuning_a_whole_model_on_other_classes(started, shapes, tmp_path):
    """All from the name, strictly, but what belongs to the classes, which is fresh on request, and listed."""
    content = torch.load(started / 'iter_1.pth', weights_only=False)['state_dict']
    other = ('decode_head.conv_seg', 'auxiliary_head.conv_seg')
    for name in [name for name in content if name.startswith(other)]:
        content[name] = torch.ones(150, *content[name].shape[1:])
    torch.save({'state_dict': content}, tmp_path / published()['upernet_vmamba_t'].file)
    still = ['optim_wrapper.optimizer.lr=0', 'param_scheduler=None', 'load_from=mmvmamba://upernet_vmamba_t']
    environment = dict(MMVMAMBA_WEIGHTS=str(tmp_path))
    done = train(shapes, tmp_path / 'work', '--fresh-heads', options=[*FROM_NAME, *still], **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = torch.load(tmp_path / 'work/iter_1.pth', weights_only=False)['state_dict']
    kept = [name for name in content if not name.startswith(other) and 'running_' not in name and 'batches' not in name]
    assert all(torch.equal(found[name], content[name]) for name in kept)
    assert all(name in log_of(tmp_path / 'work') for name in content if name.startswith(other))


def test_a_name_is_evaluated_and_drawn_with(started, shapes, tmp_path):
    """As the authors' whole model would be."""
    name = 'upernet_vmamba_t'
    os.link(started / 'iter_1.pth', tmp_path / published()[name].file)
    environment = {**os.environ, 'MMVMAMBA_WEIGHTS': str(tmp_path), 'MMVMAMBA_OFFLINE': '1', 'OMP_NUM_THREADS': '1'}
    image = next((shapes / 'ade/images/validation').iterdir())
    cfg = Config.fromfile(next(started.glob('*.py')))
    cfg.dump(tmp_path / 'config.py')
    commands = {
        'test.py': [tmp_path / 'config.py', f'mmvmamba://{name}', '--work-dir', tmp_path / 'test'],
        'image_demo.py': [image, tmp_path / 'config.py', f'mmvmamba://{name}', '--out', tmp_path / 'pictures'],
    }
    running = [
        subprocess.Popen(
            [sys.executable, f'tools/{tool}', *map(str, arguments)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for tool, arguments in commands.items()
    ]  # fmt: skip
    printed = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], '\n'.join(text[-2000:] for text in printed)
    assert 'mIoU' in printed[0]
    assert list((tmp_path / 'pictures').rglob('*.jpg'))


def test_testing_counting_and_drawing_fetch_nothing(monkeypatch, tmp_path, capsys):
    """A config that starts from published weights is built without them; nothing is asked for."""
    monkeypatch.setenv('MMVMAMBA_MIRROR', NOWHERE)
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    monkeypatch.chdir(ROOT)
    config = 'configs/upernet_vmamba_t.py'
    assert load_tool('analysis/get_flops').main([config, '--shape', '64', '64']) == 0
    erf = ['--size', '32', '--images', '1', '--out', str(tmp_path / 'erf.png')]
    assert load_tool('analysis/erf').main([config, *erf]) == 0
    assert 'FLOPs' in capsys.readouterr().out
    DefaultScope._instance_dict.clear()
    init_default_scope('mmseg')
    cfg = Config.fromfile(config)
    cfg.model.backbone.update(embed_dims=8, depths=(1, 1, 1, 1))
    MODELS.build(cfg.model.backbone)
    DefaultScope._instance_dict.clear()
    assert not list(Path(tmp_path).glob('checkpoints/*'))
