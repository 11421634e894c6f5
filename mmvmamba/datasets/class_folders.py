"""Data sets of a folder a class: mmpretrain hands labels out by the folders' order and never compares their names."""

import os
from collections import Counter
from collections.abc import Iterator

from . import files, names
from .report import shorten


def folders_of(dataset) -> list[str] | None:
    """The class folders of one of mmpretrain's `CustomDataset`, in the order of their labels.

    Args:
        dataset: with or without its samples loaded.

    Returns:
        Names; None where a list of files or nothing says the labels, or the folder is read by a file backend.
    """
    root = dataset.img_prefix
    if dataset.ann_file or not dataset.with_label or '://' in root or not os.path.isdir(root):
        return None
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def findings(dataset) -> Iterator[tuple[str, str]]:
    """Compare class folders with the names of the config; yields `(level, text)`."""
    folders = folders_of(dataset)
    if folders is None:
        return
    if not folders:
        yield 'error', f'has no folder, expected one a class; {files.suffixes(dataset.img_prefix)}'
        return
    hidden = [name for name in folders if name.startswith('.')]
    if hidden:
        yield 'error', f'{shorten(map(repr, hidden))} would be a class like any folder here; remove it'
    classes = dataset.metainfo.get('classes')
    if classes is not None and names.classes_fault(classes) is None:
        yield from names.against_folders(list(classes), folders)


def classes_of(dataset) -> list[str] | None:
    """The names that training will use: the config's, or else the folders'."""
    classes = dataset.metainfo.get('classes')
    return folders_of(dataset) if classes is None else classes


def label_findings(
    infos: list[dict], classes: list[str] | None, evaluates: bool, asked: bool = False
) -> Iterator[tuple[str, str]]:
    """What is wrong with the labels of a data set; yields `(level, text)`.

    Args:
        infos: its samples, with `gt_label` an integer or, of several labels, a list of them.
        classes: names, None if unknown.
        evaluates: whether nothing is learnt from it.
        asked: whether the model learns labels.
    """
    said = [_labels_of(info) for info in infos]
    labels = Counter(label for each in said for label in each)
    if asked and not evaluates and None in labels:
        first = next(info['img_path'] for info, each in zip(infos, said, strict=True) if None in each)
        yield 'error', f'has {labels[None]} of {len(infos)} images without a label (gt_label), the first: {first}'
    if classes is None or None in labels:
        return
    outside = sorted(label for label in labels if not 0 <= label < len(classes))
    if outside:
        first = next(info['img_path'] for info, each in zip(infos, said, strict=True) if {*each} & {*outside})
        yield (
            'error',
            f'has labels {shorten(outside)}, such as that of {first}; expected 0 to {len(classes) - 1}, as there are '
            f'{names.shorten_names(classes)}',
        )
    empty = [name for label, name in enumerate(classes) if not labels[label]]
    if empty:
        end = 'which its accuracy does not show' if evaluates else 'so a head learns never to say them'
        level = 'note' if evaluates else 'warning'
        yield level, f'{len(empty)} of {len(classes)} classes have no image, {end}: {shorten(map(repr, empty), 10)}'


def _labels_of(info: dict) -> list:
    """The labels of a sample; [None] where it has none."""
    label = info.get('gt_label')
    return list(label) if isinstance(label, (list, tuple)) else [label]
