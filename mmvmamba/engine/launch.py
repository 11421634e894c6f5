"""From a command line to a runner: configs that are found or explained, data that is checked before work starts."""

import argparse
import difflib
import gc
import logging
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import print_log

from mmvmamba.engine.coco import evaluate_faster

_SHAPES = 'python tools/make_shapes_dataset.py data/shapes'
_HOW_TO_GET = {
    'mmdet': (
        'COCO 2017 (cocodataset.org) unpacks to data/coco/{train2017,val2017,annotations}. For a small set to try: '
        f'{_SHAPES}, then --cfg-options train_dataloader.dataset.data_root=data/shapes/coco/ and so on, or a config of '
        'configs/demo.'
    ),
    'mmseg': (
        'ADE20K (SceneParsing, ADEChallengeData2016.zip) unpacks to '
        'data/ade/ADEChallengeData2016/{images,annotations}/{training,validation}. For a small set to try: '
        f'{_SHAPES}, then a config of configs/demo.'
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what training and testing have in common to a command line."""
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override entries of the config'
    )
    add_trust(parser)
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none', help='job launcher')
    # torch.distributed.launch of older versions passes it
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the way out for checkpoints that `mmvmamba.checkpoints` refuses because they may carry code."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read checkpoints that hold more than parameters; they can run any code, so know where they come from',
    )


def load_config(path: str | Path, options: dict | None = None) -> Config:
    """Read a config file and merge command-line options into it.

    Raises:
        FileNotFoundError: no such file, with the nearest names of the same folder tree.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'config {path} does not exist. {_suggest(path)}')
    cfg = Config.fromfile(path)
    if options:
        cfg.merge_from_dict(options)
    return cfg


def _suggest(path: Path) -> str:
    folder = next((p for p in path.parents if p.is_dir() and p.name), Path('configs'))
    candidates = {p.name: p for p in sorted(folder.rglob('*.py')) if '_base_' not in p.parts}
    near = difflib.get_close_matches(path.name, candidates, 5, cutoff=0.5)
    if near:
        return 'Nearest: ' + ', '.join(str(candidates[name]) for name in near)
    return f'Configs in {folder}: ' + (', '.join(sorted(candidates)) or 'none')


def task_of(cfg: Config) -> str:
    """The toolbox a config is for: 'mmdet' or 'mmseg'.

    Raises:
        ValueError: neither.
    """
    scope = cfg.get('default_scope')
    if scope not in _HOW_TO_GET:
        raise ValueError(f"default_scope={scope!r} in {cfg.filename}; expected 'mmdet' or 'mmseg'")
    return scope


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Refuse a config whose files or folders are missing, before a model is built.

    Args:
        cfg: the config.
        splits: which of 'train', 'val', 'test' will be used.

    Raises:
        FileNotFoundError: every missing path, and how to get the data.
    """
    missing = []
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader:
            for key, path in _dataset_paths(loader['dataset']):
                if not path.exists():
                    missing.append(f'{split}_dataloader: {key}: {path}')
        evaluator = cfg.get(f'{split}_evaluator')
        for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
            ann_file = metric.get('ann_file') if metric else None
            if ann_file and '://' not in ann_file and not Path(ann_file).exists():
                missing.append(f'{split}_evaluator: ann_file: {ann_file}')
    if missing:
        listed = '\n  '.join(dict.fromkeys(missing))
        raise FileNotFoundError(f'data is missing:\n  {listed}\nHow to get it: {_HOW_TO_GET[task_of(cfg)]}')


def _dataset_paths(dataset):
    """Yield `(key, path)` of every local file and folder that a dataset config names, wrapped datasets included."""
    if 'dataset' in dataset:
        yield from _dataset_paths(dataset['dataset'])
    for inner in dataset.get('datasets', []):
        yield from _dataset_paths(inner)
    root = dataset.get('data_root') or ''
    if '://' in root:
        return
    entries = {'ann_file': dataset.get('ann_file'), **dict(dataset.get('data_prefix') or {})}
    for key, value in entries.items():
        if value and '://' not in value:
            yield key, Path(root, value)


def prepare(cfg: Config, launcher: str, work_dir: str | None) -> None:
    """Fit a config to this machine: work folder, launcher, and what a CPU or a single process cannot do.

    Synchronised batch norm needs several processes on GPUs and becomes plain batch norm elsewhere; NCCL becomes gloo
    on a CPU. Both are said in the log. COCO's figures are computed by the faster of two ways that are equal.
    """
    evaluate_faster(cfg)
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(cfg.filename).stem)
    cuda = torch.cuda.is_available()
    if not cuda and launcher != 'none':
        cfg.env_cfg.dist_cfg.backend = 'gloo'
        if cfg.get('model_wrapper_cfg') is None:  # mmengine's default names a GPU
            cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
        if cfg.get('strategy', {}).get('type') == 'FSDPStrategy':
            cfg.strategy.setdefault('model_wrapper', {}).device_id = 'cpu'
            if cfg.strategy.get('state_dict_cfg') == 'full':
                cfg.strategy.state_dict_cfg = _full_state_dict_on_a_cpu()
    if (launcher == 'none' or not cuda) and _replace_sync_batch_norm(cfg.model):
        print_log('SyncBN needs several GPUs: training with BN instead', logger='current', level=logging.WARNING)


def _full_state_dict_on_a_cpu() -> dict:
    """mmengine's 'full' without the moving to the CPU, at which PyTorch's FSDP crashes if the tensors are there."""
    options = dict(offload_to_cpu=False, rank0_only=False)
    return dict(
        state_dict_type='FULL_STATE_DICT',
        state_dict_config=dict(type='FullStateDictConfig', **options),
        optim_state_dict_config=dict(type='FullOptimStateDictConfig', **options),
    )


def join_processes(cfg: Config) -> None:
    """Join the process group where mmengine cannot: its launchers select a GPU first, so they fail without one.

    Raises:
        ValueError: a launcher that works on GPUs only.
    """
    if cfg.launcher == 'none' or torch.cuda.is_available() or torch.distributed.is_initialized():
        return
    if cfg.launcher != 'pytorch':
        raise ValueError(
            f"--launcher {cfg.launcher} needs GPUs, and torch sees none here; expected 'none' or 'pytorch'"
        )
    torch.distributed.init_process_group(cfg.env_cfg.dist_cfg.backend)


def leave_processes() -> None:
    """Leave the process group, if this process is in one, when the runner is gone.

    Gloo's threads end with the last reference to their group, which lies in the cycles of a runner. At the
    interpreter's end such a thread may still be freeing tensors, which kills a process that has done all its work.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()


def _replace_sync_batch_norm(node) -> bool:
    found = False
    if isinstance(node, dict):
        if node.get('type') == 'SyncBN':
            node['type'] = 'BN'
            found = True
        for value in node.values():
            found |= _replace_sync_batch_norm(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            found |= _replace_sync_batch_norm(value)
    return found


PRECISIONS = {'bf16': 'bfloat16', 'fp16': 'float16'}


def enable_amp(cfg: Config, precision: str) -> None:
    """Train in mixed precision.

    Args:
        cfg: the config; its optimizer wrapper must be a plain or already a mixed-precision one.
        precision: 'bf16' (no loss scaling) or 'fp16' (dynamic loss scaling).

    Raises:
        ValueError: another precision or optimizer wrapper.
    """
    if precision not in PRECISIONS:
        raise ValueError(f'--amp: {precision!r} is unknown; expected one of {list(PRECISIONS)}')
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(f'--amp: optim_wrapper.type is {wrapper!r}; expected OptimWrapper or AmpOptimWrapper')
    cfg.optim_wrapper.type = 'AmpOptimWrapper' if torch.cuda.is_available() else 'mmvmamba.CpuAmpOptimWrapper'
    cfg.optim_wrapper.dtype = PRECISIONS[precision]
    # a scaler that is off also spares a look at the gradients each step
    cfg.optim_wrapper.loss_scale = dict(enabled=precision == 'fp16')


def enable_tta(cfg: Config) -> None:
    """Test with augmentation: wrap the model and swap the test pipeline for the config's `tta_pipeline`.

    Raises:
        ValueError: the config has no `tta_model` or `tta_pipeline`.
    """
    for key in ('tta_model', 'tta_pipeline'):
        if key not in cfg:
            raise ValueError(f'--tta: {cfg.filename} has no {key}; see configs/_base_ for examples')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
