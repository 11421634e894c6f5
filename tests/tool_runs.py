"""Running the tools as a user would, in seconds instead of hours."""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from mmengine.config import Config, DictAction

ROOT = Path(__file__).resolve().parents[1]
DETECTION = 'configs/demo/maskrcnn_vmamba_shapes.py'
SEGMENTATION = 'configs/demo/upernet_vmamba_shapes.py'
CLASSIFICATION = 'configs/demo/vmamba_shapes_cls.py'


def run_tool(name, *arguments, timeout=300, **environment):
    """Run a tool from the repository's root as a user would; returns the finished process with its output as text."""
    command = [sys.executable, str(ROOT / 'tools' / name), *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg', **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def load_tool(name: str):
    """`tools/<name>.py` as a module, to call what is in it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny(config, shapes):
    """Options that make a demo config train for seconds on the small dataset."""
    common = [
        'model.backbone.embed_dims=8',
        'model.backbone.depths=[1,1,1,1]',
        'train_dataloader.batch_size=2',
        'default_hooks.logger.interval=1',
    ]
    roots = [f'{split}_dataloader.dataset.data_root=' for split in ('train', 'val', 'test')]
    if config == DETECTION:
        annotations = shapes / 'coco/annotations/instances_val2017.json'
        return [
            *common,
            *(f'{root}{shapes}/coco/' for root in roots),
            'model.neck.in_channels=[8,16,32,64]',
            'train_cfg.max_epochs=2',
            'train_cfg.val_interval=2',
            f'val_evaluator.ann_file={annotations}',
            f'test_evaluator.ann_file={annotations}',
        ]
    if config == CLASSIFICATION:
        return [
            *common,
            *(f'{root}{shapes}/cls' for root in roots),
            'model.head.in_channels=64',
            'train_cfg.max_epochs=2',
            'train_cfg.val_interval=2',
        ]
    return [
        *common,
        *(f'{root}{shapes}/ade' for root in roots),
        'model.decode_head.in_channels=[8,16,32,64]',
        'model.auxiliary_head.in_channels=32',
        'train_cfg.max_iters=6',
        'train_cfg.val_interval=6',
        'default_hooks.checkpoint.interval=3',
    ]


def dumpable(config, shapes) -> Config:
    """A demo config with the `tiny` options merged, to change further and write to a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='+', action=DictAction)
    cfg = Config.fromfile(ROOT / config)
    cfg.merge_from_dict(parser.parse_args(['--options', *tiny(config, shapes)]).options)
    return cfg
