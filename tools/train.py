"""Train a detector, a segmentor or a classifier from a config.

Examples:
    python tools/train.py configs/maskrcnn_vmamba_t.py
    python tools/train.py configs/upernet_vmamba_t.py --amp --work-dir work_dirs/first_try --resume
    python tools/train.py configs/maskrcnn_vmamba_t.py --cfg-options model.backbone.init_cfg.checkpoint=vmamba_t.pth
    python tools/train.py configs/demo/vmamba_shapes_cls.py
    python tools/train.py my_classes.py --fresh-heads --cfg-options load_from=mmvmamba://maskrcnn_vmamba_t

The published recipes start from their authors' ImageNet weights, downloaded once; --from-scratch does without.
"""

import argparse
import os
import sys
from pathlib import Path

from mmvmamba import checkpoints
from mmvmamba.datasets.report import DataError
from mmvmamba.engine import durable, launch, start
from mmvmamba.engine.nonfinite import NonFiniteError
from mmvmamba.registry import HOOKS, is_type


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file')
    parser.add_argument('--work-dir', help='where logs and checkpoints go (default: work_dirs/<name of the config>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='go on from a checkpoint; without PATH (or with auto) from the newest in the work folder',
    )
    parser.add_argument(
        '--fresh-heads',
        action='store_true',
        help='with load_from: start those tensors of the heads fresh that belong to another number of classes (the log '
        'lists them); fresh_heads=True in a config says the same',
    )
    parser.add_argument(
        '--amp', nargs='?', const='bf16', choices=launch.PRECISIONS, help='mixed precision; bf16 unless fp16 is said'
    )
    parser.add_argument(
        '--from-scratch', action='store_true', help='start from random weights, whatever the config starts from'
    )
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the actual batch size')
    launch.add_arguments(parser)
    return parser.parse_args(argv)


def configure(arguments: argparse.Namespace):
    """The config with everything the command line says, checked, and what the log must say about it."""
    cfg = launch.load_config(arguments.config, arguments.cfg_options)
    launch.task_of(cfg)
    launch.prepare(cfg, arguments.launcher, arguments.work_dir)
    splits = ('train', 'val')
    if not launch.data_exists(cfg, splits):
        launch.check_data(cfg, splits)  # which says all that is wrong
    if arguments.amp:
        launch.enable_amp(cfg, arguments.amp)
    if arguments.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(f'--auto-scale-lr: {arguments.config} does not say auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    notes = configure_weights(cfg, arguments)
    notes = start.settle(cfg, arguments.from_scratch, arguments.trust_checkpoint) + notes
    # last, as reading large annotation files takes longest
    notes += launch.check_data(cfg, splits)
    return cfg, notes + compare_names(cfg, arguments.trust_checkpoint)


def configure_weights(cfg, arguments: argparse.Namespace) -> list[str]:
    """Decide what the run loads or resumes, and read it once, so that a bad file stops it here.

    Returns:
        What the log must say about it.
    """
    notes, trust = [], arguments.trust_checkpoint
    if arguments.resume is None and cfg.get('resume'):  # as a config says it
        arguments.resume = cfg.get('load_from') or 'auto'
    cfg.resume = False
    if arguments.fresh_heads and not cfg.get('load_from') and arguments.resume is None:
        raise ValueError('--fresh-heads: the config has no load_from, so all heads are fresh; expected both')
    if arguments.resume == 'auto':
        arguments.resume, damaged = durable.latest(cfg.work_dir, trust)
        if arguments.resume is None:
            notes.append(f'--resume: no checkpoint in {cfg.work_dir}, starting from the beginning')
        notes += [f'--resume: {reason}; going on from {arguments.resume} instead' for reason in damaged]
    elif arguments.resume is not None and not (Path(arguments.resume).is_dir() and 'strategy' in cfg):
        checkpoints.read_file(arguments.resume, trust=trust)
    if arguments.resume is not None:
        cfg.resume, cfg.load_from = True, arguments.resume
    elif cfg.get('load_from'):
        checkpoints.read(cfg.load_from, trust=trust)
    fresh_heads = arguments.fresh_heads or bool(cfg.get('fresh_heads'))
    cfg.custom_hooks = [
        *(hook for hook in cfg.get('custom_hooks') or [] if not _is_strict_loading(hook)),
        dict(type='mmvmamba.StrictLoading', fresh_heads=fresh_heads),
    ]
    return notes


def compare_names(cfg, trust: bool) -> list[str]:
    """Compare the classes with those that the loaded checkpoint learnt; returns what the log must say.

    Raises:
        DataError: a resumed training would go on with the same classes in another order.
    """
    source = cfg.get('load_from')
    if not source or Path(source).is_dir():  # shards of a strategy, which do not say their classes
        return []
    learnt = checkpoints.class_names(source, trust=trust)
    notes = launch.check_names(cfg, 'train', learnt, moved_is_error=cfg.resume)
    return [f'{"--resume" if cfg.resume else "load_from"} {source}: {note}' for note in notes]


def _is_strict_loading(hook) -> bool:
    """Whether a config, one that a run has written, has the hook already."""
    return isinstance(hook, dict) and is_type(hook.get('type'), 'StrictLoading', HOOKS)


def train(cfg, notes: list[str], trust: bool) -> int:
    """Build the runner and train; what comes back is the exit code."""
    try:
        with checkpoints.guard(trust):
            start.build_runner(cfg, notes).train()
    except checkpoints.CheckpointError as error:  # weights are initialised, loaded and resumed at the start
        print(f'train.py: {error}', file=sys.stderr)
        return 2
    except (DataError, NonFiniteError) as error:
        reason = str(error).strip().splitlines()[-1]  # behind the traceback of a worker, if there was one
        print(f'train.py: {reason}', file=sys.stderr)
        return 1
    return 0


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    os.environ.setdefault('LOCAL_RANK', str(arguments.local_rank))
    try:
        cfg, notes = configure(arguments)
        launch.join_processes(cfg)
    except (FileNotFoundError, ValueError) as error:
        print(f'train.py: {error}', file=sys.stderr)
        return 2
    code = train(cfg, notes, arguments.trust_checkpoint)
    launch.leave_processes()
    return code


if __name__ == '__main__':
    sys.exit(main())
