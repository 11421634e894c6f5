"""The datasets and metrics of a config, found without building a model: what they read, and which class reads it."""

import copy
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType

from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, METRICS, TRANSFORMS, DefaultScope, Registry

from mmvmamba.registry import is_type

from . import class_folders

REFUSALS = (ValueError, AssertionError, OSError, KeyError, RuntimeError)
"""What datasets of the toolboxes raise at data or arguments that they cannot use; also TypeError, at others'."""

_REFUSALS = (TypeError, *REFUSALS)
_LABEL_MAP_KEYS = ('seg', 'seg_map_path')  # prefixes that only a transform makes a dataset read


@dataclass
class Source:
    """One dataset of a config, unwrapped.

    Attributes:
        split: 'train', 'val' or 'test'.
        key: where the config says it.
        config: what the config says.
        pipeline: its transforms and those of its wrappers, nested ones too.
        scope: default scope of the config.
        cls: the class that is built, None if nothing of this name is registered.
    """

    split: str
    key: str
    config: dict
    pipeline: list[dict]
    scope: str
    cls: type | None = None
    _loaders: list | None = field(default=None, repr=False)

    @property
    def evaluates(self) -> bool:
        """Whether nothing may be left out."""
        return self.split != 'train' or self.in_test_mode

    @property
    def in_test_mode(self) -> bool:
        """Whether the dataset knows that it evaluates."""
        return bool(self.config.get('test_mode', False))

    @property
    def remote(self) -> bool:
        """Whether a file backend, not the file system, reads it."""
        return '://' in str(self.config.get('data_root') or '') or _by_a_backend(self.config)

    @property
    def finds_images(self) -> bool:
        """Whether images are files at their paths: a transform of a toolbox reads them, from the file system."""
        with in_scope(self.scope):
            found = [(one, find_class(TRANSFORMS, one['type'], one.get('_scope_'))) for one in self.pipeline]
        loaders = [(one, cls) for one, cls in found if _loads_images(cls)]
        return bool(loaders) and all(
            _of_a_toolbox(getattr(cls, 'transform', cls)) and not _by_a_backend(one) for one, cls in loaders
        )

    @property
    def checked(self) -> bool:
        """Whether the class leaves bad samples and annotations out of training, as ours do."""
        return bool(getattr(self.cls, 'LEAVES_OUT_BAD_DATA', False))

    @property
    def loaders(self) -> list:
        """The transforms that load annotations, built."""
        if self._loaders is None:
            with in_scope(self.scope):
                built = (_annotation_loader(transform) for transform in self.pipeline)
                self._loaders = [loader for loader in built if loader is not None]
        return self._loaders

    def metainfo(self) -> dict:
        """Names and the like, the class's defaults included."""
        if self.lists_classes:
            dataset = self.build()  # which knows a file of names, too
            classes = class_folders.classes_of(dataset)
            return dataset.metainfo if classes is None else dict(dataset.metainfo, classes=classes)
        given = copy.deepcopy(self.config.get('metainfo'))
        if isinstance(self.cls, type) and issubclass(self.cls, BaseDataset):
            return self.cls._load_metainfo(given)
        return dict(given or {})

    def build(self) -> BaseDataset:
        """The dataset, its annotations and transforms not loaded.

        Raises:
            Exception: what its class says of the config.
        """
        arguments = {key: value for key, value in self.config.items() if key not in ('type', '_scope_', 'pipeline')}
        with in_scope(self.scope):
            return self.cls(**copy.deepcopy(arguments), pipeline=[], lazy_init=True)

    def paths(self) -> Iterator[tuple[str, Path]]:
        """Yield `(key, path)` of every local file and folder that will be read."""
        if self.remote:
            return
        if self.lists_classes:
            yield from self._class_paths()
            return
        if isinstance(self.config.get('data_prefix'), str):  # of mmpretrain's other classes, which may download
            return
        root = self.config.get('data_root') or ''
        entries = {key: self.config.get(key) for key in ('ann_file', 'proposal_file')}
        for key, value in dict(self.config.get('data_prefix') or {}).items():
            if self._reads(key) and not any(map(_by_a_backend, self.pipeline)):
                entries[key] = value
        for key, value in entries.items():
            if isinstance(value, str) and value and '://' not in value:
                yield key, Path(root, value)

    @property
    def lists_classes(self) -> bool:
        """Whether it is mmpretrain's dataset of a folder a class, or of a list of files and labels."""
        base = _imported('mmpretrain.datasets.custom', 'CustomDataset')
        return base is not None and isinstance(self.cls, type) and issubclass(self.cls, base)

    def _class_paths(self) -> Iterator[tuple[str, Path]]:
        try:
            dataset = self.build()
        except _REFUSALS:  # said where its names are asked for
            return
        for key, path in (('data_prefix', dataset.img_prefix), ('ann_file', dataset.ann_file)):
            if path and '://' not in path and not any(map(_by_a_backend, self.pipeline)):
                yield key, Path(path)

    def _reads(self, prefix: str) -> bool:
        cls = self.cls
        if not isinstance(cls, type) or not issubclass(cls, BaseDataset):
            return True
        if (cls.load_data_list, cls.parse_data_info) == (BaseDataset.load_data_list, BaseDataset.parse_data_info):
            return True  # they join every prefix
        own = [base for base in cls.__mro__ if base not in BaseDataset.__mro__]
        if not any(_names(base, prefix) for base in own):
            return False
        return prefix not in _LABEL_MAP_KEYS or self.reads_label_maps

    @property
    def reads_images(self) -> bool:
        """Whether images are files that mmcv decodes as OpenCV or Pillow do."""
        usual = (one for one in self.pipeline if one.get('imdecode_backend', 'cv2') in ('cv2', 'pillow', 'turbojpeg'))
        with in_scope(self.scope):
            classes = [find_class(TRANSFORMS, one['type'], one.get('_scope_')) for one in usual]
        known = any(isinstance(cls, type) and issubclass(cls, LoadImageFromFile) for cls in classes)
        return known and self.finds_images

    @property
    def reads_label_maps(self) -> bool:
        """Whether some transform reads semantic or panoptic label maps."""
        return any(_reads_label_maps(loader) for loader in self.loaders)

    @property
    def map_loader(self) -> LoadAnnotations | None:
        """The transform that reads semantic label maps as mmcv's does, if there is one."""
        loaders = (one for one in self.loaders if isinstance(one, LoadAnnotations) and one.with_seg)
        loaders = (one for one in loaders if not _by_a_backend(vars(one)))
        loaders = (one for one in loaders if not getattr(one, 'with_mask', False))  # needs the image
        return next((one for one in loaders if not _mentions(type(one), 'segments_info')), None)

    @property
    def reads_masks(self) -> bool:
        """Whether some transform reads the instances' masks."""
        return any(getattr(loader, 'with_mask', False) for loader in self.loaders)


def sources(cfg: Config, split: str) -> list[Source]:
    """The datasets of a split, those inside wrappers included."""
    loader = cfg.get(f'{split}_dataloader') or {}
    dataset = loader.get('dataset') if isinstance(loader, dict) else None
    scope = cfg.get('default_scope')
    return list(_unwrap(dataset, split, f'{split}_dataloader.dataset', [], scope)) if isinstance(dataset, dict) else []


def _unwrap(dataset: dict, split: str, key: str, outer: list, scope: str) -> Iterator[Source]:
    transforms = [*_transforms(dataset.get('pipeline')), *outer]
    inner = [('dataset', dataset['dataset'])] if isinstance(dataset.get('dataset'), dict) else []
    inner += [(f'datasets[{i}]', one) for i, one in enumerate(dataset.get('datasets') or []) if isinstance(one, dict)]
    scope = dataset.get('_scope_', scope)
    for name, config in inner:
        yield from _unwrap(config, split, f'{key}.{name}', transforms, scope)
    if not inner:
        yield Source(split, key, dataset, transforms, scope, find_class(DATASETS, dataset.get('type'), scope))


def _transforms(pipeline) -> Iterator[dict]:
    if isinstance(pipeline, dict):
        if 'type' in pipeline:
            yield pipeline
        pipeline = list(pipeline.values())
    for one in pipeline if isinstance(pipeline, (list, tuple)) else ():
        yield from _transforms(one)


@dataclass
class Metric:
    """A metric that reads an annotation file of its own.

    Attributes:
        key: where the config says it.
        path: the file, None if it is remote.
        coco: whether it is mmdet's COCO metric, of boxes or masks.
        masks: whether it compares masks.
        compares: False if it only writes predictions.
    """

    key: str
    path: Path | None
    coco: bool
    masks: bool
    compares: bool

    def paths(self) -> Iterator[tuple[str, Path]]:
        """As a `Source`'s."""
        if self.path is not None:
            yield 'ann_file', self.path


def metrics(cfg: Config, split: str) -> list[Metric]:
    """The metrics of a split that read an annotation file."""
    found = []
    evaluator = cfg.get(f'{split}_evaluator') or []
    several = isinstance(evaluator, (list, tuple))
    for i, metric in enumerate(evaluator if several else [evaluator]):
        ann_file = metric.get('ann_file') if isinstance(metric, dict) else None
        if not ann_file:
            continue
        cls = find_class(METRICS, metric.get('type'), metric.get('_scope_', cfg.get('default_scope')))
        known = [
            _imported('mmdet.evaluation.metrics.coco_metric', 'CocoMetric'),
            _imported('mmdet.evaluation.metrics.faster_coco_metric', 'FasterCocoMetric'),
        ]
        judged = [base.compute_metrics for base in known if base is not None]
        found.append(
            Metric(
                f'{split}_evaluator{f"[{i}]" if several else ""}',
                None if '://' in ann_file or _by_a_backend(metric) else Path(ann_file),
                getattr(cls, 'compute_metrics', None) in judged,
                'segm' in (metric.get('metric') or ()),
                not metric.get('format_only', False),
            )
        )
    return found


def topk(cfg: Config, split: str) -> Iterator[tuple[str, int]]:
    """Yield `(key, k)` of every mmpretrain accuracy of a split: the most classes that it looks among."""
    evaluator = cfg.get(f'{split}_evaluator') or []
    several = isinstance(evaluator, (list, tuple))
    for i, metric in enumerate(evaluator if several else [evaluator]):
        if not isinstance(metric, dict) or not is_type(metric.get('type'), 'Accuracy', METRICS):
            continue
        counts = metric.get('topk', 1)
        counts = counts if isinstance(counts, (list, tuple)) else [counts]
        yield f'{split}_evaluator{f"[{i}]" if several else ""}.topk', max(counts, default=0)


def reads_coco(cls: type | None) -> bool:
    """Whether a class lists images and names as mmdet's `CocoDataset` does."""
    base = _imported('mmdet.datasets.coco', 'CocoDataset')
    if base is None or not isinstance(cls, type) or not issubclass(cls, base):
        return False
    return cls.load_data_list is base.load_data_list or getattr(cls, 'LEAVES_OUT_BAD_DATA', False)


def lists_coco_images(cls: type | None) -> bool:
    """Whether it takes images from the entries as `CocoDataset` does, too; a method of a user's own may not."""
    return reads_coco(cls) and _of_a_toolbox(cls.parse_data_info)


def reads_coco_instances(cls: type | None) -> bool:
    """Whether it takes instances from the entries as `CocoDataset` does, too."""
    if not reads_coco(cls):
        return False
    base = _imported('mmdet.datasets.coco', 'CocoDataset')
    return cls.parse_data_info is base.parse_data_info and cls.COCOAPI is base.COCOAPI


def _of_a_toolbox(function) -> bool:
    return function.__module__.partition('.')[0] in (
        'mmcv',
        'mmdet',
        'mmengine',
        'mmpretrain',
        'mmseg',
        'mmvmamba',
    )


def _loads_images(cls) -> bool:
    if not isinstance(cls, type):
        return False
    return issubclass(cls, LoadImageFromFile) or (cls.__name__.startswith('Load') and 'Image' in cls.__name__)


def _by_a_backend(config: dict) -> bool:
    """Whether files that a config names are read by a file backend, not the file system."""
    backend = config.get('backend_args') or config.get('file_client_args') or {}
    return backend.get('backend', 'local') not in ('local', 'disk')


def _imported(module: str, name: str) -> type | None:
    """A toolbox's class if something has imported it; a class that derives from it has."""
    return getattr(sys.modules.get(module), name, None)


@contextmanager
def in_scope(scope: str | None) -> Iterator[None]:
    """Look names up as a runner of this default scope does."""
    with DefaultScope.overwrite_default_scope(scope):
        yield


def find_class(registry: Registry, type_, scope: str | None):
    """The class that a config's `type` means, None if nothing of this name is registered."""
    if not isinstance(type_, str):
        return type_
    with registry.switch_scope_and_registry(scope) as inner:
        return inner.get(type_)


def _names(cls: type, word: str) -> bool:
    """Whether a method that this class itself defines has the string as a constant."""
    return any(_has_constant(getattr(value, '__code__', None), word) for value in vars(cls).values())


def _has_constant(code: CodeType | None, word: str) -> bool:
    constants = code.co_consts if code is not None else ()
    return any(one == word or (isinstance(one, CodeType) and _has_constant(one, word)) for one in constants)


def _mentions(cls: type, word: str) -> bool:
    return any(_names(base, word) for base in cls.__mro__)


def _annotation_loader(config: dict):
    """The transform, built, if it loads annotations."""
    cls = find_class(TRANSFORMS, config['type'], config.get('_scope_'))
    if not isinstance(cls, type) or not (_mentions(cls, 'seg_map_path') or _mentions(cls, 'bbox_label')):
        return None
    arguments = {key: value for key, value in config.items() if key not in ('type', '_scope_')}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that an argument of the config will be deprecated is said when it trains
        try:
            return cls(**copy.deepcopy(arguments))
        except (ImportError, TypeError, ValueError):  # said by the toolbox when it builds the pipeline
            return None


def _reads_label_maps(loader) -> bool:
    cls = type(loader)
    if not _mentions(cls, 'seg_map_path'):
        return False
    panoptic = _mentions(cls, 'segments_info')
    return getattr(loader, 'with_seg', True) or (panoptic and getattr(loader, 'with_mask', True))
