"""Train a detector or a segmentor from a config.

Examples:
    python tools/train.py configs/maskrcnn_vmamba_t.py
    python tools/train.py configs/upernet_vmamba_t.py --amp --work-dir work_dirs/first_try --resume
    python tools/train.py configs/maskrcnn_vmamba_t.py --cfg-options model.backbone.init_cfg.type=Pretrained \\
        model.backbone.init_cfg.checkpoint=vmamba_t.pth
"""

import argparse
import os
import sys
from pathlib import Path

from mmengine.runner import Runner, find_latest_checkpoint

from mmvmamba import checkpoints
from mmvmamba.engine import launch


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
    parser.add_argument('--amp', action='store_true', help='mixed precision, bfloat16')
    parser.add_argument('--amp-dtype', choices=('bfloat16', 'float16'), default='bfloat16', help='precision of --amp')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the actual batch size')
    launch.add_arguments(parser)
    return parser.parse_args(argv)


def configure(arguments: argparse.Namespace):
    """The config with everything the command line says, checked."""
    cfg = launch.load_config(arguments.config, arguments.cfg_options)
    launch.task_of(cfg)
    launch.prepare(cfg, arguments.launcher, arguments.work_dir)
    launch.check_data(cfg, ('train', 'val'))
    if arguments.amp:
        launch.enable_amp(cfg, arguments.amp_dtype)
    if arguments.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(f'--auto-scale-lr: {arguments.config} does not say auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    if arguments.resume == 'auto':
        latest = find_latest_checkpoint(cfg.work_dir) if Path(cfg.work_dir).is_dir() else None
        if latest is None:
            print(f'--resume: no checkpoint in {cfg.work_dir}, starting from the beginning')
        arguments.resume = latest
    if arguments.resume is None and cfg.get('load_from'):
        checkpoints.read(cfg.load_from)
    if arguments.resume is not None:
        checkpoints.read_file(arguments.resume)
        cfg.resume, cfg.load_from = True, arguments.resume
    return cfg


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    os.environ.setdefault('LOCAL_RANK', str(arguments.local_rank))
    try:
        cfg = configure(arguments)
        launch.join_processes(cfg)
    except (FileNotFoundError, ValueError) as error:
        print(f'train.py: {error}', file=sys.stderr)
        return 2
    Runner.from_cfg(cfg).train()
    return 0


if __name__ == '__main__':
    sys.exit(main())
