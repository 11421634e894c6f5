"""Evaluate a checkpoint of a detector, a segmentor or a classifier; draw and save its predictions.

Examples:
    python tools/test.py configs/maskrcnn_vmamba_t.py work_dirs/maskrcnn_vmamba_t/epoch_12.pth
    python tools/test.py configs/maskrcnn_vmamba_t.py mmvmamba://maskrcnn_vmamba_t
    python tools/test.py configs/upernet_vmamba_t.py CHECKPOINT --tta --show-dir pictures
"""

import argparse
import os
import sys
import time
from pathlib import Path

from mmengine.config import ConfigDict
from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmvmamba import checkpoints
from mmvmamba.datasets.report import DataError
from mmvmamba.engine import launch
from mmvmamba.engine.pictures import OVERVIEW
from mmvmamba.registry import is_type


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint file, or mmvmamba://NAME')
    parser.add_argument('--work-dir', help='where logs and metrics go (default: work_dirs/<name of the config>)')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation: several scales and flips, merged')
    parser.add_argument(
        '--out',
        help='save predictions: a .pkl file for detection and classification, a folder of label PNGs for segmentation',
    )
    parser.add_argument('--show-dir', help='draw predictions into this folder')
    launch.add_arguments(parser)
    return parser.parse_args(argv)


def configure(arguments: argparse.Namespace):
    """The config with everything the command line says, checked, and what the log must say about it."""
    cfg = launch.load_config(arguments.config, arguments.cfg_options)
    task = launch.task_of(cfg)
    launch.prepare(cfg, arguments.launcher, arguments.work_dir)
    notes = launch.check_data(cfg, ('test',))
    # mmengine's loader takes what fits and goes on; ours is strict. And where a resumed run has written the config, it
    # would put the newest checkpoint of the work folder in place of the one to test
    cfg.load_from, cfg.resume = None, False
    if arguments.show_dir:
        launch.draw_predictions(cfg, arguments.show_dir)
    if arguments.out:
        cfg.test_evaluator = save_predictions(cfg.test_evaluator, task, arguments.out)
    if arguments.tta:
        launch.enable_tta(cfg)
    return cfg, notes


def save_predictions(evaluator, task: str, out: str):
    """Add to an evaluator config what the toolbox has for saving predictions."""
    evaluators = list(evaluator) if isinstance(evaluator, (list, tuple)) else [evaluator]
    if task != 'mmseg':
        if not out.endswith(('.pkl', '.pickle')):
            raise ValueError(f'--out {out}: predictions are saved as one .pkl file; expected a name that ends so')
        return [*evaluators, dict(type='DumpDetResults' if task == 'mmdet' else 'DumpResults', out_file_path=out)]
    from mmseg.registry import METRICS

    return [
        ConfigDict(each, output_dir=out, keep_results=True) if is_type(each['type'], 'IoUMetric', METRICS) else each
        for each in evaluators
    ]


def report_pictures(folder: str, images: int, start: float) -> None:
    """Say how many pictures a test has drawn; fewer than images where folders hold files of equal names."""
    drawn = [path for path in Path(folder).rglob('*') if path.is_file() and path.stat().st_mtime >= start]
    overview = [path for path in drawn if path.name == OVERVIEW]
    drawn = [path for path in drawn if path not in overview]
    places = ', '.join(sorted({str(path.parent) for path in drawn})) or folder
    print(f'pictures of {len(drawn)} of {images} images: {places}')
    for path in overview:
        print(f'right and wrong ones: {path}')
    if len(drawn) < images:
        print('test.py: pictures of images with one name in several folders replace each other', file=sys.stderr)


def build(cfg, arguments: argparse.Namespace) -> Runner:
    """A runner whose model has the checkpoint's parameters."""
    trust = arguments.trust_checkpoint
    # what is no checkpoint, or another data set's, is refused before a model is built
    notes = launch.check_names(cfg, 'test', checkpoints.class_names(arguments.checkpoint, trust=trust))
    runner = Runner.from_cfg(cfg)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    report = checkpoints.load(arguments.checkpoint, model.module if arguments.tta else model, trust=trust)
    runner.logger.info(report)
    for note in notes:
        runner.logger.warning(note)
    return runner


def evaluate(cfg, arguments: argparse.Namespace, notes: list[str]) -> int:
    """Test the checkpoint; what comes back is the exit code."""
    try:
        with checkpoints.guard(arguments.trust_checkpoint):
            runner = build(cfg, arguments)
    except (FileNotFoundError, ValueError) as error:
        print(f'test.py: {error}', file=sys.stderr)
        return 2
    for note in notes:
        runner.logger.warning(note)
    start = time.time()
    try:
        runner.test()
    except DataError as error:
        reason = str(error).strip().splitlines()[-1]  # behind the traceback of a worker, if there was one
        print(f'test.py: {reason}', file=sys.stderr)
        return 1
    if arguments.show_dir and is_main_process():
        report_pictures(arguments.show_dir, len(runner.test_dataloader.dataset), start)
    return 0


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    os.environ.setdefault('LOCAL_RANK', str(arguments.local_rank))
    try:
        cfg, notes = configure(arguments)
        launch.join_processes(cfg)
    except (FileNotFoundError, ValueError) as error:
        print(f'test.py: {error}', file=sys.stderr)
        return 2
    code = evaluate(cfg, arguments, notes)
    launch.leave_processes()
    return code


if __name__ == '__main__':
    sys.exit(main())
