"""From a command line to a runner: configs that are found or explained, data that is checked before work starts.

Nodes of a config are changed in place or copied by `ConfigDict(node, key=value)`. Both leave the types of a config in
pure Python what they are there, names to import; `dict(node)` and `**node` put classes in their place, with which the
original mmengine cannot write the config down.
"""

import argparse
import difflib
import gc
import inspect
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import print_log
from mmengine.registry import MODEL_WRAPPERS, MODELS, OPTIM_WRAPPERS, STRATEGIES, VISBACKENDS

from mmvmamba.datasets import audit, names, sources
from mmvmamba.datasets.report import DataError
from mmvmamba.engine.coco import evaluate_faster
from mmvmamba.registry import is_type

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
    'mmpretrain': (
        'ImageNet-1K (image-net.org) unpacks to data/imagenet/{train,val}, one folder a class in each. For a small set '
        f'to try: {_SHAPES} --classification, then a config of configs/demo.'
    ),
}
TASKS = tuple(_HOW_TO_GET)
"""The toolboxes: detection, segmentation, classification."""
GLOO_REST = 0.2  # seconds in which gloo's threads end their last work


class CfgOptions(DictAction):
    """mmengine's `KEY=VALUE` pairs; what these cannot say ends with a usage message instead of a traceback."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            try:
                super().__call__(parser, namespace, [value], option_string)
            except (AssertionError, RecursionError, ValueError) as error:
                parser.error(
                    f'--cfg-options {value}: expected KEY=VALUE, where VALUE is a number, a word, [a,list], (a,tuple); '
                    f'a dict(...) goes into a config of your own that names this one in _base_ ({type(error).__name__})'
                )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what training and testing have in common to a command line."""
    parser.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, metavar='KEY=VALUE', help='override entries of the config'
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
    """The toolbox a config is for, one of `TASKS`.

    Raises:
        ValueError: none of them.
    """
    scope = cfg.get('default_scope')
    if scope not in _HOW_TO_GET:
        raise ValueError(f'default_scope={scope!r} in {cfg.filename}; expected one of {", ".join(map(repr, TASKS))}')
    return scope


def data_exists(cfg: Config, splits: tuple[str, ...]) -> bool:
    """Whether all files and folders of a config are there, which takes no time to find out. See `check_data`."""
    try:
        audit.check(cfg, splits, '', whole=False)
    except FileNotFoundError:
        return False
    return True


def check_data(cfg: Config, splits: tuple[str, ...]) -> list[str]:
    """Refuse a config whose data is missing or does not fit it, before a model is built; returns lines for the log.

    The first process looks at the data, the others at whether it exists. So does the first if the config has
    `check_data = False`, for data that the toolbox can use and we refuse.

    Args:
        cfg: the config.
        splits: which of 'train', 'val', 'test' will be used.

    Raises:
        FileNotFoundError: every missing path, and how to get the data.
        DataError: everything else that is wrong.
    """
    whole = _is_first_process(cfg) and cfg.get('check_data', True)
    return audit.check(cfg, splits, _HOW_TO_GET[task_of(cfg)], whole)


def check_names(cfg: Config, split: str, learnt: list[str] | None, moved_is_error: bool = True) -> list[str]:
    """Refuse to go on with classes in another order than a checkpoint learnt them in; returns lines for the log.

    Args:
        cfg: the config, whose data is there.
        split: 'train', 'val' or 'test'.
        learnt: names by label, None if the checkpoint does not say them.
        moved_is_error: False for a training that may learn the order anew, whose log then says it.

    Raises:
        DataError: the same names in another order.
    """
    notes = []
    with sources.in_scope(cfg.get('default_scope')):
        for source in sources.sources(cfg, split) if learnt else ():
            try:
                classes = source.metainfo().get('classes')
            except (TypeError, *sources.REFUSALS):  # said by `check_data`, or by the toolbox
                continue
            for level, text in names.against_checkpoint(list(classes or ()), learnt):
                if level == 'error' and moved_is_error:
                    raise DataError(f"{source.key}: {text}. Write the data set's names in the checkpoint's order")
                notes.append(f'{source.key}: {text}')
    return notes


def _is_first_process(cfg: Config) -> bool:
    rank = os.environ.get('SLURM_PROCID' if cfg.get('launcher') == 'slurm' else 'RANK', '0')
    return cfg.get('launcher', 'none') == 'none' or rank == '0'


def prepare(cfg: Config, launcher: str, work_dir: str | None) -> None:
    """Fit a config to this machine: work folder, launcher, and what a CPU or a single process cannot do.

    Synchronised batch norm needs several processes on GPUs and becomes plain batch norm elsewhere, which the log says;
    on a CPU NCCL becomes gloo, and mixed precision our wrapper. COCO's figures are computed by the faster of two ways
    that are equal.
    """
    evaluate_faster(cfg)
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(cfg.filename).stem)
    cuda = torch.cuda.is_available()
    if not cuda and launcher != 'none':
        _share_on_cpus(cfg)
    wrapper = cfg.get('optim_wrapper') or {}
    if not cuda and is_type(wrapper.get('type'), 'AmpOptimWrapper', OPTIM_WRAPPERS):  # mmengine's insists on a GPU
        enable_amp(cfg, 'bf16' if wrapper.get('dtype') == 'bfloat16' else 'fp16')
    if launcher == 'none' or not cuda:
        # with sync_bn mmengine makes a model's plain ones synchronised
        asked = [holder.pop('sync_bn', None) for holder in (cfg, cfg.get('strategy') or {})]
        if _replace_sync_batch_norm(cfg.model) or any(asked):
            print_log('SyncBN needs several GPUs: training with BN instead', logger='current', level=logging.WARNING)


def _share_on_cpus(cfg: Config) -> None:
    """What mmengine needs to be told where its defaults name GPUs."""
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    if cfg.get('model_wrapper_cfg') is None:
        # these two are mmengine's own, which reads find_unused_parameters only where no wrapper is configured
        unused = cfg.get('find_unused_parameters', False)
        cfg.model_wrapper_cfg = dict(broadcast_buffers=False, find_unused_parameters=unused)
    _name_no_gpu(cfg.model_wrapper_cfg)
    strategy = cfg.get('strategy') or {}
    if is_type(strategy.get('type'), 'FSDPStrategy', STRATEGIES):
        strategy['model_wrapper'] = ConfigDict(strategy.get('model_wrapper') or {}, device_id='cpu')
        if strategy.get('state_dict_cfg') == 'full':
            strategy['state_dict_cfg'] = _full_state_dict_on_a_cpu()
    elif is_type(strategy.get('type'), 'DDPStrategy', STRATEGIES):
        if strategy.get('model_wrapper') is None:
            strategy['model_wrapper'] = dict(broadcast_buffers=False)
        _name_no_gpu(strategy['model_wrapper'])


def _name_no_gpu(wrapper: dict) -> None:
    """Keep mmengine from giving a wrapper that shares gradients the number of a GPU."""
    if 'type' not in wrapper:
        wrapper['type'] = 'MMDistributedDataParallel'
    type_ = wrapper['type']
    cls = type_ if inspect.isclass(type_) else MODEL_WRAPPERS.get(type_)
    if cls is not None and issubclass(cls, torch.nn.parallel.DistributedDataParallel):
        wrapper.setdefault('device_ids', None)


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
    The group's destructor waits for its threads without letting go of the interpreter's lock, which a thread needs to
    free the tensors of its last collective: a deadlock (seen with PyTorch 2.4), hence the rest before.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        time.sleep(GLOO_REST)
        torch.distributed.destroy_process_group()
        gc.collect()


_SYNCHRONISED = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')  # registered names, and the classes' own


def _replace_sync_batch_norm(node) -> bool:
    found = False
    if isinstance(node, dict):
        type_ = node.get('type')
        if inspect.isclass(type_):
            found = issubclass(type_, torch.nn.SyncBatchNorm) or is_type(type_, 'MMSyncBN', MODELS)
        else:
            found = isinstance(type_, str) and type_.rpartition('.')[2] in _SYNCHRONISED
        if found:
            node['type'] = 'BN'
        for value in node.values():
            found |= _replace_sync_batch_norm(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            found |= _replace_sync_batch_norm(value)
    return found


PRECISIONS = {'bf16': 'bfloat16', 'fp16': 'float16'}
_PRECISION_CAN_CHANGE = ('OptimWrapper', 'AmpOptimWrapper', 'mmvmamba.CpuAmpOptimWrapper')


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
    if not any(is_type(wrapper, name, OPTIM_WRAPPERS) for name in _PRECISION_CAN_CHANGE):
        raise ValueError(f'--amp: optim_wrapper.type is {wrapper!r}; expected OptimWrapper or AmpOptimWrapper')
    cfg.optim_wrapper.type = 'AmpOptimWrapper' if torch.cuda.is_available() else 'mmvmamba.CpuAmpOptimWrapper'
    cfg.optim_wrapper.dtype = PRECISIONS[precision]
    # a scaler that is off also spares a look at the gradients each step
    cfg.optim_wrapper.loss_scale = dict(enabled=precision == 'fp16')


def draw_predictions(cfg: Config, folder: str) -> None:
    """Have a test draw every image, with annotations and predictions, into a folder.

    Args:
        cfg: the config; what it lacks for drawing is added.
        folder: where to.
    """
    folder = str(Path(folder).absolute())
    if task_of(cfg) == 'mmpretrain':
        pictures = dict(type='mmvmamba.ClassificationPictures', out_dir=folder)
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), pictures]
        return
    detection = task_of(cfg) == 'mmdet'
    hooks = cfg.get('default_hooks') or {}
    hook = hooks.get('visualization') or dict(type='DetVisualizationHook' if detection else 'SegVisualizationHook')
    # of the original mmsegmentation interval counts in a test too
    hook = ConfigDict(hook, draw=True, interval=1, **(dict(test_out_dir=folder) if detection else {}))
    cfg.default_hooks = ConfigDict(hooks, visualization=hook)
    visualizer = cfg.get('visualizer') or dict(type='DetLocalVisualizer' if detection else 'SegLocalVisualizer')
    backends = list(visualizer.get('vis_backends') or [])
    if not detection and not any(is_type(b.get('type'), 'LocalVisBackend', VISBACKENDS) for b in backends):
        backends.append(dict(type='LocalVisBackend'))
    cfg.visualizer = ConfigDict(visualizer, vis_backends=backends, **({} if detection else dict(save_dir=folder)))


_FAR = 1.5  # a side; beyond it a network finds little of what it was trained to find


def enable_tta(cfg: Config) -> None:
    """Test with augmentation: wrap the model and swap the test pipeline for the config's `tta_pipeline`.

    Raises:
        ValueError: the config has no `tta_model` or `tta_pipeline`, or no scale of the latter is near its
            test pipeline's, which happens where a config replaces `test_pipeline` and inherits `tta_pipeline`.
    """
    for key in ('tta_model', 'tta_pipeline'):
        if key not in cfg:
            raise ValueError(f'--tta: {cfg.filename} has no {key}; see configs/_base_ for examples')
    augmented = sorted(set(_scales(cfg.tta_pipeline)))
    datasets = list(_datasets(cfg.test_dataloader.dataset))
    for scale in [scale for dataset in datasets for scale in _scales(dataset.get('pipeline', []))]:
        if augmented and min(_times(scale, other) for other in augmented) > _FAR:
            raise ValueError(
                f'--tta: {cfg.filename} tests at the scale {scale}, and its tta_pipeline at '
                f'{", ".join(map(str, augmented))}, all of them more than {_FAR:g} times larger or smaller; give the '
                f'config a tta_pipeline of its own, with scales around {scale}'
            )
    cfg.model = ConfigDict(cfg.tta_model, module=cfg.model)
    for dataset in datasets:
        dataset.pipeline = cfg.tta_pipeline


def _datasets(dataset: dict) -> Iterator[dict]:
    """The datasets inside wrapped and joined ones."""
    inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets', [])
    for each in inner:
        yield from _datasets(each)
    if not inner:
        yield dataset


def _scales(pipeline) -> Iterator[tuple[int, int]]:
    """Sizes to which the transforms of a pipeline resize, nested ones included."""
    if isinstance(pipeline, (list, tuple)):
        for each in pipeline:
            yield from _scales(each)
    elif isinstance(pipeline, dict):
        type_ = pipeline.get('type')
        name = type_.__name__ if inspect.isclass(type_) else str(type_)
        scale = pipeline.get('scale')
        if name.endswith('Resize') and scale:
            yield (scale, scale) if isinstance(scale, int) else tuple(scale)
        yield from _scales(pipeline.get('transforms', []))


def _times(one: tuple[int, int], other: tuple[int, int]) -> float:
    """How many times larger the larger of two sizes is, a side."""
    ratio = math.sqrt(math.prod(one) / math.prod(other))
    return max(ratio, 1 / ratio)
