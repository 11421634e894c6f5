"""Whether data means what a config says, looked at before a model is built: one report, by file.

Looked at in full: paths, names, every entry of COCO annotation files, whether each image and label file exists. Looked
at in a sample, spread evenly over each data set: heads and ends of image files, label maps. Not looked at: what a file
backend reads from elsewhere, and the annotations of other formats than COCO instances.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from mmengine.config import Config

from . import annotations, class_folders, files, label_maps, names
from .report import DataError, Report
from .sources import (
    REFUSALS,
    Metric,
    Source,
    in_scope,
    lists_coco_images,
    metrics,
    reads_coco,
    reads_coco_instances,
    sources,
    topk,
)

SAMPLES = 200
_NAMED = 20  # bad files of one data set


def check(cfg: Config, splits: tuple[str, ...], how_to_get: str, whole: bool = True) -> list[str]:
    """Refuse a config whose data does not fit it; returns what the log should say.

    Args:
        cfg: the config.
        splits: which of 'train', 'val', 'test' will be used.
        how_to_get: where the data comes from, said when some is missing.
        whole: look into files, too, not only whether they exist.

    Raises:
        FileNotFoundError: something does not exist.
        DataError: anything else is wrong; both name all that was found.
    """
    report = audit(cfg, splits, hand_over=True) if whole else _existence(cfg, splits)
    if report.of('error'):
        annotations.forget()
        text = '\n'.join(report.lines('error', 'warning'))
        if report.missing:
            raise FileNotFoundError(f'data is missing or wrong:\n{text}\nHow to get it: {how_to_get}')
        way_out = 'If a toolbox can use it all the same, check_data = False in the config looks for missing files only'
        raise DataError(f'the data does not fit the config:\n{text}\n{way_out}')
    return [f'{finding.place}: {finding.text}' for finding in report.of('warning', 'note')]


def _existence(cfg: Config, splits: tuple[str, ...]) -> Report:
    run = _Audit(cfg, 0, False)
    with in_scope(cfg.get('default_scope')):
        for split in splits:
            for one in [*sources(cfg, split), *metrics(cfg, split)]:
                run.exists(one)
    return run.report


def audit(cfg: Config, splits: tuple[str, ...], samples: int = SAMPLES, hand_over: bool = False) -> Report:
    """Look at the data of a config.

    Args:
        cfg: the config.
        splits: which of 'train', 'val', 'test'.
        samples: label maps and images of each data set that are looked at.
        hand_over: keep parsed annotation files for the datasets that are built next.
    """
    annotations.forget()
    run = _Audit(cfg, samples, hand_over)
    with in_scope(cfg.get('default_scope')):
        for split in splits:
            found = sources(cfg, split)
            for source in found:
                run.source(source)
            for metric in metrics(cfg, split):
                run.metric(metric, found)
            for key, count in topk(cfg, split):
                run.likeliest(key, count, found)
    return run.report


class _Audit:
    """One look at a config's data."""

    def __init__(self, cfg: Config, samples: int, hand_over: bool):
        self.model, self.samples, self.hand_over = dict(cfg.get('model') or {}), samples, hand_over
        if cfg.get('data_preprocessor'):  # where mmpretrain's own configs have it
            self.model.setdefault('data_preprocessor', cfg.data_preprocessor)
        self.report = Report()
        self.trained: list[list[str]] = []  # names of the training sets
        self.class_folders: list[list[str]] = []  # and their folders, where each is a class
        self.classes: dict[str, list[str] | None] = {}  # of each dataset
        self.contents: dict[Path, dict | None] = {}
        self.said: set[tuple[str, str]] = set()

    def source(self, source: Source) -> None:
        """A dataset."""
        there = self.exists(source)
        classes = self.classes[source.key] = self.names(source)
        if source.evaluates and source.checked and not source.in_test_mode:
            said = 'should have test_mode=True; as it is, images may be filtered and bad samples replaced by others'
            self.report.add('warning', source.key, said)
        if source.remote:
            self.report.add('info', source.key, 'read by a file backend; not looked at')
        elif there and reads_coco(source.cls):
            self.coco(source, classes)
        elif there and source.lists_classes:
            self.folders(source, classes)
        elif there and all(hasattr(source.cls, word) for word in ('get_label_map', 'load_data_list')):
            self.maps(source, classes)

    def exists(self, one: Source | Metric) -> bool:
        """Whether all files and folders that a config names and a dataset or metric reads are there."""
        missing = [(key, path) for key, path in one.paths() if not path.exists()]
        for key, path in missing:
            self.report.add('error', path, f'does not exist ({one.key}.{key})')
            self.report.missing = True
        return not missing

    def names(self, source: Source) -> list[str] | None:
        """The names of a dataset, compared with the heads and with those of training; None if there are none."""
        try:
            metainfo = source.metainfo()
        except (TypeError, *REFUSALS) as error:
            self.report.add('error', f'{source.key}.metainfo', f'{type(error).__name__}: {error}')
            return None
        classes = metainfo.get('classes')
        if classes is None:
            return None
        default = '' if _gives_names(source.config) else f' (the default of {source.cls.__name__})'
        if default and source.lists_classes and not source.cls.METAINFO.get('classes'):
            default = ' (its folders)'
        fault = names.classes_fault(classes, repeats=bool(default) and source.lists_classes)
        if fault is not None:
            self.report.add('error', source.key, fault)
            return None
        said = [*names.against_heads(self.model, metainfo), *names.against_preprocessor(self.model, classes)]
        for key, text in said:
            if (key, text) not in self.said:  # once for training and evaluation
                self.report.add('error', key, f'{text}{default} ({source.key})')
            self.said.add((key, text))
        for key in names.one_class(self.model, classes):
            self.report.add(
                'warning',
                key,
                'a softmax over one class is always right: the loss is 0. Name the background as a class, too',
            )
        if source.split == 'train':
            self.trained.append(list(classes))
        elif self.trained and list(classes) not in self.trained and names.learns_names(self.model):
            training = names.shorten_names(self.trained[0])
            text = (
                f'names other classes than training does, {names.shorten_names(classes)}{default}; training: {training}'
            )
            self.report.add('error', f'{source.key}.metainfo', text)
        return list(classes)

    def content(self, path: Path) -> dict | None:
        """An annotation file, parsed once; None if it is no COCO file, which is said."""
        if path not in self.contents:
            try:
                self.contents[path] = annotations.read(path)
            except DataError as error:
                self.contents[path] = None
                self.report.add('error', path, str(error).partition(': ')[2])
        return self.contents[path]

    def coco(self, source: Source, classes: list[str] | None) -> None:
        """A dataset with a COCO annotation file."""
        path = dict(source.paths()).get('ann_file')
        content = self.content(path) if path is not None else None
        if content is None:
            return
        report, entries = self.report, reads_coco_instances(source.cls) or source.checked
        read = content if entries else dict(content, annotations=[])
        if not lists_coco_images(source.cls) and not source.checked:
            read['images'] = []
        annotated = bool(source.loaders) and not source.evaluates
        examined = annotations.examine(read, source.reads_masks, annotated, classes=classes)
        for level, text in examined.findings(source.evaluates, source.checked):
            report.add(level, path, text)
        if examined.faults:
            return
        said = list(names.against_file(classes, _categories(content))) if classes else []
        for level, text in said:
            report.add(level, path, text)
        usable = examined.usable()
        if entries and classes and not any(level == 'error' for level, _ in said):
            self.filtered(source, path, usable, classes)
        counts = (len(content.get(part) or ()) for part in ('images', 'annotations', 'categories'))
        report.add('info', path, '{} images, {} annotations, {} categories'.format(*counts))
        root = os.path.join(
            source.config.get('data_root') or '', (source.config.get('data_prefix') or {}).get('img') or ''
        )
        self.images(
            source, [(os.path.join(root, one['file_name']), (one['height'], one['width'])) for one in usable['images']]
        )
        if self.hand_over and source.checked:
            examined.reported = True
            annotations.hand_over(path, examined)

    def filtered(self, source: Source, path: Path, content: dict, classes: list[str]) -> None:
        """What the dataset's filter leaves of its images."""
        total = len(content['images'])
        filter_cfg = None if source.in_test_mode else source.config.get('filter_cfg')
        small, empty = annotations.filtered(content, classes, filter_cfg)
        if small + empty >= total:
            self.report.add('error', path, annotations.nothing_left(total, small, empty, filter_cfg))
        elif small + empty:
            self.report.add(
                'info',
                path,
                f'{small + empty} of {total} images left out of training: {empty} without annotations of the classes, '
                f'{small} smaller than filter_cfg allows',
            )

    def metric(self, metric: Metric, found: list[Source]) -> None:
        """A metric with an annotation file of its own."""
        path = metric.path
        content = self.content(path) if self.exists(metric) and path is not None and metric.coco else None
        if content is None:
            return
        classes = next((self.classes[source.key] for source in found), None)
        examined = annotations.examine(content, metric.masks, metric.compares, metric.compares, classes)
        for level, text in examined.findings(evaluates=True, checked=True):
            self.report.add(level, path, text)
        for source in found if not examined.faults else ():
            own = dict(source.paths()).get('ann_file')
            if not reads_coco(source.cls) or own is None or own == path or not own.exists():
                continue
            classes = self.classes[source.key]
            for level, text in names.against_file(classes, _categories(content)) if classes else ():
                self.report.add(level, path, text)
            other = self.content(own)
            ids = {str(image.get('id')) for image in content['images'] if isinstance(image, dict)}
            images = other.get('images') if other else None
            absent = [one for one in images or () if isinstance(one, dict) and str(one.get('id')) not in ids]
            if absent:
                self.report.add(
                    'error',
                    path,
                    f'lacks {len(absent)} of {len(images)} images that {source.key} evaluates ({own}), the first: id '
                    f'{absent[0].get("id")}. {metric.key}.ann_file should be the same file',
                )

    def likeliest(self, key: str, count: int, found: list[Source]) -> None:
        """An accuracy among the likeliest classes, which asks for more of them than there are only when it is due."""
        classes = next((self.classes[source.key] for source in found), None)
        if classes and count > len(classes):
            self.report.add(
                'error', key, f'asks for the likeliest {count} of {names.shorten_names(classes)}; expected at most that'
            )

    def folders(self, source: Source, classes: list[str] | None) -> None:
        """A dataset of a folder a class, or of a list of files with labels."""
        try:
            dataset = source.build()
        except (TypeError, *REFUSALS):  # said with its names
            return
        report, root, folders = self.report, dataset.img_prefix, class_folders.folders_of(dataset)
        said = list(class_folders.findings(dataset))
        if folders is not None and source.split == 'train':
            self.class_folders.append(folders)
        elif folders is not None and self.class_folders and folders not in self.class_folders:
            said += names.other_folders(self.class_folders[0], folders)
        for level, text in said:
            report.add(level, root, text)
        if any(level == 'error' for level, _ in said):
            return
        try:
            infos = dataset.load_data_list()
        except REFUSALS as error:
            report.add('error', root, f'{type(error).__name__}: {error}. {files.suffixes(root)}')
            return
        report.add('info', root, f'{len(infos)} images of {len(classes or ())} classes')
        asked = any(head.get('num_classes') for _, head in names.heads(self.model))
        for level, text in class_folders.label_findings(infos, classes, source.evaluates, asked):
            report.add(level, root, text)
        self.images(source, [(info['img_path'], None) for info in infos], root)

    def maps(self, source: Source, classes: list[str] | None) -> None:
        """A dataset of images and label maps."""
        report = self.report
        try:
            dataset = source.build()
            infos = dataset.load_data_list()
        except TypeError as error:  # a class that takes other arguments
            report.add('info', source.key, f'not looked at: {error}')
            return
        except REFUSALS as error:
            report.add('error', source.key, f'{type(error).__name__}: {error}')
            return
        folder = dict(source.paths()).get('img_path', source.key)
        if not infos:
            report.add('error', folder, label_maps.nothing_found(dataset))
            return
        if not all(isinstance(info.get('img_path'), str) for info in infos):
            report.add('info', folder, 'not looked at: its list has no path of an image')
            return
        report.add('info', folder, f'{len(infos)} images')
        absent = self.images(source, [(info['img_path'], None) for info in infos])
        loader = source.map_loader
        if loader is None or not all(isinstance(info.get('seg_map_path'), str) for info in infos):
            return
        maps = [info['seg_map_path'] for info in infos]
        without = self.absent(source, dataset.data_prefix.get('seg_map_path', source.key), maps, len(infos))
        there = [info for info in infos if info['seg_map_path'] not in without and info['img_path'] not in absent]
        if there:
            self.labels(source, dataset, there, classes)

    def labels(self, source: Source, dataset, infos: list[dict], classes: list[str] | None) -> None:
        """The label maps of a dataset, in a sample."""
        chosen = [infos[i] for i in files.spread(len(infos), self.samples)]
        ignored = dataset.ignore_index if source.checked else names.ignored_label(self.model)
        folder = dataset.data_prefix.get('seg_map_path', source.key)
        looked = label_maps.look(chosen, source.map_loader, classes, ignored, source.reads_images)
        if looked.mistake is not None:
            said = f'{looked.mistake}. The files can be read, so the mistake is in the config'
            self.report.add('error', source.key, said)
            return
        if looked.hindrance is not None:
            self.report.add('info', folder, f'label files were not looked at: {looked.hindrance}')
            return
        self.report.add('info', folder, f'{len(chosen)} of {len(infos)} label files looked at')
        self.bad(source, folder, looked.bad, len(chosen))
        if classes:
            doubts = label_maps.doubts(looked, classes, len(infos), ignored) if looked.maps > len(looked.bad) else []
            reduces = bool(getattr(source.map_loader, 'reduce_zero_label', False))
            some = [info['seg_map_path'] for info in chosen[:5]]
            said, advice = label_maps.convention(some, looked, reduces, len(classes), ignored)
            if looked.bad and advice and not reduces:
                self.report.add('warning', folder, f'{said}: {advice}')
            for level, doubt in doubts:
                self.report.add(
                    'note' if source.evaluates else level, folder, f'{doubt}. {said}{": " if advice else ""}{advice}'
                )

    def images(
        self, source: Source, images: list[tuple[str, tuple[int, int] | None]], folder: str | None = None
    ) -> set[str]:
        """Image files: whether they exist, and of a sample head, end and size; returns those that do not exist."""
        if not source.finds_images or (images and '://' in images[0][0]):
            self.report.add('info', source.key, 'images not looked at: no transform of a toolbox reads them from files')
            return set()
        where = folder or (Path(images[0][0]).parent if images else source.key)
        absent = self.absent(source, where, (path for path, _ in images), len(images))
        there = [one for one in images if one[0] not in absent]
        if not source.reads_images:
            return absent
        chosen = [there[i] for i in files.spread(len(there), self.samples)]
        bad = []
        for path, size in chosen:
            reason = files.image_fault(path, decode=False)
            if reason is None and size is not None and tuple(size) not in (sizes := files.image_sizes(path)):
                reason = f'the image is {sizes[0]} (H, W), but its annotation says {tuple(size)}'
            if reason is not None:
                bad.append((path, reason))
        self.report.add('info', where, f'{len(chosen)} of {len(images)} image files looked at')
        self.bad(source, where, bad, len(chosen))
        return absent

    def absent(self, source: Source, place, paths: Iterable[str], total: int) -> set[str]:
        """Files of a folder that do not exist."""
        absent = files.missing(path for path in paths if '://' not in path)
        self.bad(source, place, [(path, 'does not exist') for path in absent], total, files.suffixes)
        return set(absent)

    def bad(
        self, source: Source, place, bad: list[tuple[str, str]], looked: int, found: Callable | None = None
    ) -> None:
        """Files that cannot be used, out of so many; `found` says what is there instead if it is most of them."""
        stops = source.evaluates or not source.checked
        level, end = ('error', '') if stops else ('warning', '; left out of training')
        for path, reason in bad[:_NAMED]:
            self.report.add(level, path, f'{reason}{end}')
        if len(bad) > _NAMED:
            self.report.add(level, place, f'{len(bad) - _NAMED} more files cannot be used')
        if 2 * len(bad) > looked:
            said = f'{len(bad)} of {looked} files cannot be used, more than half: the data or the config is wrong'
            self.report.add('error', place, f'{said}; {found(place)}' if found else said)


def _gives_names(config: dict) -> bool:
    """Whether a dataset's config says its classes; mmpretrain's also beside `metainfo`."""
    return bool((config.get('metainfo') or {}).get('classes') or config.get('classes'))


def _categories(content: dict) -> list[str]:
    return [category['name'] for category in content['categories']]
