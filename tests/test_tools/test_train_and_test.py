"""tools/train.py, test.py and image_demo.py as a user runs them: subprocesses on a small dataset."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config
from tool_runs import DETECTION, ROOT, SEGMENTATION, dumpable, load_tool, run_tool, tiny

CONFIGS = {'detection': DETECTION, 'segmentation': SEGMENTATION}


def train(config, shapes, work_dir, *arguments):
    return run_tool('train.py', config, '--work-dir', work_dir, '--cfg-options', *tiny(config, shapes), *arguments)


def losses(work_dir) -> dict[int, float]:
    """Iteration to loss, from all logs of a work folder."""
    found = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if 'loss' in entry:
                found[entry['step'] if 'step' in entry else entry['iter']] = entry['loss']
    return found


@pytest.fixture(scope='session')
def trained(shapes, tmp_path_factory):
    """Work folders of one short uninterrupted training of each task."""
    folders = {}
    for task, config in CONFIGS.items():
        folders[task] = tmp_path_factory.mktemp(task)
        done = train(config, shapes, folders[task])
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folders


def last_checkpoint(work_dir):
    return (work_dir / 'last_checkpoint').read_text().strip()


@pytest.mark.parametrize('task', CONFIGS)
def test_training_logs_and_saves(task, trained):
    assert len(losses(trained[task])) >= 6
    assert Path(last_checkpoint(trained[task])).is_file()


@pytest.mark.parametrize('task', CONFIGS)
def test_resuming_after_a_kill_repeats_the_uninterrupted_run(task, trained, shapes, tmp_path):
    config = CONFIGS[task]
    checkpoint_said, then = (
        ('Saving checkpoint at 1 epochs', 'Epoch(train)  [2][2/')
        if task == 'detection'
        else ('Saving checkpoint at 3 iter', 'Iter(train) [4/6]')
    )
    command = [sys.executable, 'tools/train.py', config, '--work-dir', tmp_path, '--cfg-options', *tiny(config, shapes)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1'}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    seen = []
    for line in process.stdout:
        seen.append(line)
        if any(checkpoint_said in s for s in seen) and ' '.join(then.split()) in ' '.join(line.split()):
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    expected = losses(trained[task])
    assert len(losses(tmp_path)) < len(expected), 'the run was to be killed before its end'

    done = train(config, shapes, tmp_path, '--resume')
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert losses(tmp_path) == expected
    ours, theirs = (torch.load(last_checkpoint(w), weights_only=False)['state_dict'] for w in (tmp_path, trained[task]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_resume_with_nothing_to_resume_says_so(shapes, tmp_path):
    done = train(DETECTION, shapes, tmp_path, 'train_cfg.max_epochs=1', '--resume')
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'no checkpoint in' in done.stdout
    assert 'starting from the beginning' in done.stdout


def test_detection_test_draws_and_saves(trained, shapes, tmp_path):
    done = run_tool(
        'test.py', DETECTION, last_checkpoint(trained['detection']), '--work-dir', tmp_path,
        '--out', tmp_path / 'p.pkl', '--show-dir', tmp_path / 'pictures', '--cfg-options', *tiny(DETECTION, shapes),
        'model.test_cfg.rcnn.score_thr=0',
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert 'bbox_mAP_50' in done.stdout
    assert 'segm_mAP_50' in done.stdout
    assert (tmp_path / 'p.pkl').stat().st_size > 0
    pictures = list((tmp_path / 'pictures').rglob('*.jpg'))
    assert len(pictures) == 4
    assert f'pictures of 4 of 4 images: {pictures[0].parent}' in done.stdout
    assert cv2.imread(str(pictures[0])).shape[2] == 3


def test_segmentation_test_draws_and_saves(trained, shapes, tmp_path):
    done = run_tool(
        'test.py', SEGMENTATION, last_checkpoint(trained['segmentation']), '--work-dir', tmp_path, '--out',
        tmp_path / 'labels', '--show-dir', tmp_path / 'pictures', '--cfg-options', *tiny(SEGMENTATION, shapes),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert 'mIoU' in done.stdout
    assert len(list((tmp_path / 'labels').glob('*.png'))) == 4
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 4


@pytest.mark.parametrize('task', CONFIGS)
def test_test_time_augmentation(task, trained, shapes, tmp_path):
    config = CONFIGS[task]
    cfg = dumpable(config, shapes)
    if task == 'detection':
        cfg.model.test_cfg.rcnn.score_thr = 0.0  # whatever it finds after so few steps
    cfg.dump(tmp_path / 'augmented.py')
    checkpoint = last_checkpoint(trained[task])
    done = run_tool('test.py', tmp_path / 'augmented.py', checkpoint, '--tta', '--work-dir', tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert ('segm_mAP_50' if task == 'detection' else 'mIoU') in done.stdout


@pytest.mark.parametrize('task', CONFIGS)
def test_image_demo_refuses_another_architecture_and_draws_its_own(task, trained, shapes, tmp_path):
    image = next((shapes / 'coco/val2017').glob('*.jpg'))
    checkpoint = last_checkpoint(trained[task])
    refused = run_tool('image_demo.py', image, CONFIGS[task], checkpoint, '--out', tmp_path / 'refused')
    assert refused.returncode == 2
    assert 'of another shape' in refused.stderr
    assert 'patch_embed.0.weight' in refused.stderr

    own = tmp_path / 'own.py'
    dumpable(CONFIGS[task], shapes).dump(own)
    done = run_tool('image_demo.py', image, own, checkpoint, '--out', tmp_path / 'out')
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(list((tmp_path / 'out/vis').iterdir())) == 1


def test_two_processes_train_to_equal_weights(shapes, tmp_path):
    """A real gloo run; a hook compares every parameter across the ranks at the end."""
    hook = tmp_path / 'equal_ranks.py'
    hook.write_text(
        'import atexit, pathlib, torch, torch.distributed as dist\n'
        'from mmengine.hooks import Hook\nfrom mmengine.registry import HOOKS\n'
        '@HOOKS.register_module()\n'
        'class EqualRanks(Hook):\n'
        '    def after_train(self, runner):\n'
        '        assert dist.get_world_size() == 2\n'
        '        for name, p in runner.model.named_parameters():\n'
        '            other = [torch.empty_like(p) for _ in range(2)]\n'
        '            dist.all_gather(other, p.detach())\n'
        '            assert torch.equal(*other), name\n'
        '        runner.logger.info("ranks hold equal weights")\n'
        '@atexit.register\n'
        'def at_the_end():\n'
        '    names = [path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")]\n'
        '    print(f"threads at the end: {[name for name in names if \'gloo\' in name]}", flush=True)\n'
    )
    cfg = dumpable(DETECTION, shapes)
    cfg.custom_imports.imports.append('equal_ranks')
    cfg.custom_hooks.append(dict(type='EqualRanks'))
    cfg.train_cfg.max_epochs = 1
    cfg.dump(tmp_path / 'config.py')
    done = subprocess.run(
        ['bash', 'tools/dist_train.sh', tmp_path / 'config.py', '2', '--work-dir', tmp_path / 'work'],
        cwd=ROOT, capture_output=True, text=True, timeout=400,
        env={**os.environ, 'PYTHON': sys.executable, 'PYTHONPATH': str(tmp_path),
             'OMP_NUM_THREADS': '1', 'MASTER_PORT': '29517'},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert 'ranks hold equal weights' in done.stdout + done.stderr
    # what outlives its group may die with the interpreter
    assert done.stdout.count('threads at the end: []') == 2, done.stdout[-3000:]


def test_fsdp_trains_and_saves_whole_checkpoints(shapes, tmp_path):
    """Blocks as shards on two CPU processes, through mmengine's strategy; the file fits the unsharded model."""
    cfg = dumpable(DETECTION, shapes)
    example = Config.fromfile(ROOT / 'configs/distributed/maskrcnn_vmamba_b_fsdp.py')
    cfg.runner_type, cfg.strategy = example.runner_type, example.strategy
    cfg.train_cfg.max_epochs = 1
    cfg.dump(tmp_path / 'config.py')
    done = subprocess.run(
        ['bash', 'tools/dist_train.sh', tmp_path / 'config.py', '2', '--work-dir', tmp_path / 'work'],
        cwd=ROOT, capture_output=True, text=True, timeout=400,
        env={**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1', 'MASTER_PORT': '29518'},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    done = run_tool('test.py', DETECTION, last_checkpoint(tmp_path / 'work'), '--cfg-options', *tiny(DETECTION, shapes))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_resume_falls_back_from_a_damaged_checkpoint(trained, shapes, tmp_path):
    work = tmp_path / 'work'
    shutil.copytree(trained['segmentation'], work)
    (work / 'last_checkpoint').write_text(str(work / 'iter_6.pth'))
    damaged = work / 'iter_6.pth'
    expected = torch.load(damaged, weights_only=False)['state_dict']
    damaged.write_bytes(damaged.read_bytes()[:-5000])
    done = train(SEGMENTATION, shapes, work, '--resume')
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f'{damaged} is truncated or damaged' in done.stdout
    assert f'going on from {work / "iter_3.pth"} instead' in done.stdout
    repeated = torch.load(damaged, weights_only=False)['state_dict']
    assert all(torch.equal(repeated[name], expected[name]) for name in expected)


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
@pytest.mark.parametrize('task', CONFIGS)
def test_mixed_precision_stays_near_float32(task, precision, trained, shapes, tmp_path):
    done = run_tool(
        'train.py', CONFIGS[task], '--amp', precision, '--work-dir', tmp_path, '--cfg-options',
        *tiny(CONFIGS[task], shapes),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    expected, found = losses(trained[task]), losses(tmp_path)
    assert found.keys() == expected.keys()
    assert found != expected, 'it ran in float32'
    assert found[max(found)] == pytest.approx(expected[max(expected)], rel=0.05)


def test_unknown_config_suggests_names():
    done = run_tool('train.py', 'configs/maskrcnn_vmamba_tiny.py')
    assert done.returncode == 2
    assert 'does not exist. Nearest: configs/maskrcnn_vmamba_t' in done.stderr


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_missing_data_names_paths_and_how_to_get_them(tool, tmp_path):
    root = tmp_path / 'nowhere'
    options = [f'{split}_dataloader.dataset.data_root={root}/' for split in ('train', 'val', 'test')]
    checkpoint = ['checkpoint.pth'] if tool == 'test.py' else []
    done = run_tool(tool, 'configs/maskrcnn_vmamba_t.py', *checkpoint, '--cfg-options', *options)
    assert done.returncode == 2
    assert f'{root}/annotations/instances_' in done.stderr
    assert 'make_shapes_dataset.py' in done.stderr


def test_missing_and_truncated_checkpoints(trained, shapes, tmp_path):
    options = ['--cfg-options', *tiny(DETECTION, shapes)]
    done = run_tool('test.py', DETECTION, tmp_path / 'none.pth', *options)
    assert done.returncode == 2
    assert 'none.pth does not exist' in done.stderr
    damaged = tmp_path / 'damaged.pth'
    damaged.write_bytes(Path(last_checkpoint(trained['detection'])).read_bytes()[:20000])
    for arguments in (['test.py', DETECTION, damaged], ['train.py', DETECTION, '--resume', damaged]):
        done = run_tool(*arguments, *options)
        assert done.returncode == 2, done.stderr[-2000:]
        assert 'damaged.pth is truncated or damaged' in done.stderr


def test_checkpoint_of_another_architecture_is_listed(trained, shapes):
    done = run_tool(
        'test.py', DETECTION, last_checkpoint(trained['detection']), '--cfg-options', *tiny(DETECTION, shapes),
        'model.backbone.depths=[1,1,3,1]',
    )  # fmt: skip
    assert done.returncode == 2
    assert 'made by another architecture or config' in done.stderr
    assert 'missing:' in done.stderr
    assert 'backbone.layers.2.blocks.1.norm.weight' in done.stderr
    assert '... and' in done.stderr


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (None, '/other.pth does not exist'),
        ({'state_dict': {'some.weight': torch.zeros(2, 2)}}, '/other.pth does not fit VMamba'),
    ],
    ids=['missing', 'other'],
)
def test_pretrained_weights_that_cannot_be_used_are_refused(content, reason, shapes, tmp_path):
    if content is not None:
        torch.save(content, tmp_path / 'other.pth')
    options = [f'model.backbone.init_cfg.{entry}' for entry in ('type=Pretrained', f'checkpoint={tmp_path}/other.pth')]
    done = train(DETECTION, shapes, tmp_path / 'work', *options)
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    assert f'{tmp_path}{reason}' in done.stderr
    assert 'Traceback' not in done.stderr


def test_fine_tuning_on_other_classes_is_said_and_asked_for(trained, shapes, tmp_path):
    heads = [f'model.roi_head.{head}.num_classes=3' for head in ('bbox_head', 'mask_head')]
    names = "train_dataloader.dataset.metainfo.classes=('circle','triangle','square')"
    checkpoint = last_checkpoint(trained['detection'])
    options = [*heads, names, names.replace('train', 'val', 1), 'train_cfg.max_epochs=1', f'load_from={checkpoint}']
    refused = train(DETECTION, shapes, tmp_path, *options)
    assert refused.returncode == 2, refused.stdout[-3000:] + refused.stderr[-3000:]
    assert 'its heads have other shapes, as with another number of classes' in refused.stderr
    assert 'roi_head.bbox_head.fc_cls.weight: checkpoint (6, ' in refused.stderr
    assert '--fresh-heads' in refused.stderr
    done = train(DETECTION, shapes, tmp_path, *options, '--fresh-heads')
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    log = max(tmp_path.glob('*/*.log')).read_text()
    listed = log.partition('These tensors start from scratch:')[2].splitlines()[1:7]
    assert {name.strip().rpartition('.')[0] for name in listed} == {
        'roi_head.bbox_head.fc_cls',
        'roi_head.bbox_head.fc_reg',
        'roi_head.mask_head.conv_logits',
    }


def test_a_config_may_say_resume_and_fresh_heads(trained):
    tool, work_dir = load_tool('train'), str(trained['segmentation'])

    def configured(**options):
        cfg = Config(dict(model={}, work_dir=work_dir, **options))
        tool.configure_weights(cfg, tool.parse_arguments(['config.py']))
        return cfg

    newest = last_checkpoint(trained['segmentation'])
    assert configured(resume=True).load_from == newest
    assert configured(resume=True, load_from=newest).resume is True
    assert configured(load_from=newest).resume is False
    hooks = configured(fresh_heads=True, custom_hooks=[dict(type='mmvmamba.StrictLoading')]).custom_hooks
    assert hooks == [dict(type='mmvmamba.StrictLoading', fresh_heads=True)]
    with pytest.raises(ValueError, match='--fresh-heads: the config has no load_from'):
        tool.configure_weights(Config(dict(model={})), tool.parse_arguments(['config.py', '--fresh-heads']))
