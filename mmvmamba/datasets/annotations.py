"""COCO annotation files, every entry: what a training leaves out, and at what an evaluation stops.

The checks go over columns, not entries, so that COCO's 860,000 annotations cost about a second.
"""

import gc
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, compress
from operator import itemgetter
from pathlib import Path

import numpy as np

from .report import DataError, shorten

_IDS, _NUMBERS = {int, str, float}, {int, float}
_handed_over: dict[tuple, 'Examined'] = {}


@dataclass
class Defect:
    """Entries of a file that lack the same thing.

    Attributes:
        part: 'annotations' or 'images'.
        text: what is wrong with each.
        entries: their positions in the file's list.
        effect: 'crash' (the toolbox raises an error), 'drop' (it leaves them out), 'unmatched' (so it does, and in a
            file cut down to some categories nothing is wrong with that), 'surplus' (likewise of images, in an
            evaluation too), 'empty' (no area inside the image: training leaves them out, a metric takes them as they
            are), 'metric' (only the metric needs it).
    """

    part: str
    text: str
    entries: list[int]
    effect: str


@dataclass
class Examined:
    """A parsed file and what is wrong with it.

    Attributes:
        content: the file.
        masks: whether segmentations were looked at.
        classes: names of the categories whose segmentations were; None for all.
        faults: what is wrong with the file as a whole, in words.
        defects: what is wrong with entries.
        reported: whether the user has been told.
    """

    content: dict
    masks: bool
    classes: list[str] | None
    faults: list[str]
    defects: list[Defect]
    reported: bool = False

    def left_out(self, part: str, *kept: str) -> set[int]:
        """Positions of entries that training does without; those with an effect in `kept` do not count."""
        chosen = (one for one in self.defects if one.part == part and one.effect not in ('metric', *kept))
        return {i for defect in chosen for i in defect.entries}

    def usable(self) -> dict:
        """The file without them."""
        content = dict(self.content)
        for part in ('images', 'annotations'):
            if out := self.left_out(part):
                content[part] = [entry for i, entry in enumerate(content[part]) if i not in out]
        return content

    def findings(self, evaluates: bool, checked: bool) -> Iterator[tuple[str, str]]:
        """Yield `(level, text)`.

        Args:
            evaluates: no entry may be left out.
            checked: the dataset's class leaves bad entries out of training; the toolbox's own fail at some.
        """
        yield from (('error', fault) for fault in self.faults)
        for defect in self.defects:
            total = len(self.content[defect.part])
            text = f'{len(defect.entries)} of {total} {defect.part}: {defect.text}: {self._examples(defect)}'
            if defect.effect == 'metric' or (evaluates and defect.effect not in ('empty', 'surplus')):
                yield 'error', f'{text}. Evaluation leaves nothing out; repair or remove them'
            elif evaluates:
                what = 'They are evaluated as they are' if defect.effect == 'empty' else 'No evaluated image has them'
                yield 'note', f'{text}. {what}'
            elif defect.effect == 'crash' and not checked:
                yield 'error', f'{text}. mmvmamba.CheckedCocoDataset leaves them out'
            else:
                yield 'warning', f'{text}. Left out of training'
        for part in () if evaluates else ('images', 'annotations'):
            total = len(self.content.get(part) or ())
            out = len(self.left_out(part, 'unmatched', 'surplus'))
            if 2 * out > total:
                yield (
                    'error',
                    f'{out} of {total} {part} cannot be used, more than half: the file or the config is wrong',
                )
            elif total and len(self.left_out(part)) == total:
                yield 'error', f'none of {total} {part} can be used'

    def _examples(self, defect: Defect) -> str:
        def name(i: int) -> str:
            entry = self.content[defect.part][i]
            if not isinstance(entry, dict):
                return f'entry {i}'
            if defect.part == 'images':
                return f'entry {i} (id {entry.get("id")}, {entry.get("file_name")})'
            return f'entry {i} (id {entry.get("id")}, image {entry.get("image_id")})'

        return shorten(map(name, defect.entries))


def read(path: str | Path) -> dict:
    """Parse an annotation file.

    Raises:
        DataError: it cannot be read, is no JSON, or no COCO file.
    """
    try:
        with open(path, encoding='utf-8') as file, _no_collection():
            content = json.load(file)
    except OSError as error:
        raise DataError(f'{path}: cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise DataError(f'{path}: no JSON: {error}') from error
    if not isinstance(content, dict):
        raise DataError(
            f'{path}: a {type(content).__name__}; expected an object with images, annotations and categories (COCO)'
        )
    return content


@contextmanager
def _no_collection() -> Iterator[None]:
    """Parse without the cyclic garbage collector, which looks at millions of new objects again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def hand_over(path: Path, examined: Examined) -> None:
    """Keep a parsed file for the dataset that will read it next, as large ones take many seconds to parse."""
    _handed_over[_identity(path)] = examined


def forget() -> None:
    """Drop what no dataset has taken."""
    _handed_over.clear()


def take(path: str | Path, masks: bool, annotated: bool, classes: list[str] | None = None) -> Examined:
    """A file, parsed and examined as `examine` does; what was handed over is taken, once.

    Raises:
        DataError: see `read`.
    """
    examined = _handed_over.pop(_identity(Path(path)), None)
    if examined is None or masks > examined.masks or (masks and classes != examined.classes):
        examined = examine(read(path) if examined is None else examined.content, masks, annotated, classes=classes)
    return examined


def _identity(path: Path) -> tuple:
    state = path.stat()
    return path.resolve(), state.st_mtime_ns, state.st_size


def examine(
    content: dict, masks: bool, annotated: bool = True, metric: bool = False, classes: list[str] | None = None
) -> Examined:
    """Look at every entry.

    Args:
        content: a parsed file.
        masks: whether segmentations are read.
        annotated: whether annotations are needed; a test set has none, nor has one that is trained on without labels.
        metric: whether pycocotools compares predictions with the file, which needs more than training does.
        classes: names of the categories whose segmentations are read; None for all.
    """
    found = Examined(content, masks, classes, list(_faults(content, annotated)), [])
    if not found.faults:
        _of_images(found, content['images'])
        _of_annotations(found, metric)
    return found


def filtered(content: dict, classes: list[str], filter_cfg: dict | None) -> tuple[int, int]:
    """How many images mmdet's filter takes out because they are small, and of the others, because they are empty.

    Args:
        content: a file without faults and defects.
        classes: the names that are trained on.
        filter_cfg: of the dataset.
    """
    named = set(classes)
    chosen = {category['id'] for category in content['categories'] if category['name'] in named}
    filled = {one['image_id'] for one in content.get('annotations') or () if one['category_id'] in chosen}
    small = [min(one['width'], one['height']) < (filter_cfg or {}).get('min_size', 0) for one in content['images']]
    if not (filter_cfg or {}).get('filter_empty_gt', False):
        return sum(small), 0
    empty = sum(not tiny and one['id'] not in filled for tiny, one in zip(small, content['images'], strict=True))
    return sum(small), empty


def nothing_left(total: int, small: int, empty: int, filter_cfg: dict | None) -> str:
    """Why a data set is empty, in words."""
    if not total:
        return 'lists no image'
    return (
        f'nothing is left of {total} images: {empty} have no annotation of the classes (filter_empty_gt), {small} are '
        f'smaller than min_size={(filter_cfg or {}).get("min_size", 0)} (filter_cfg={filter_cfg})'
    )


def _faults(content: dict, annotated: bool) -> Iterator[str]:
    for part in ('images', 'categories', 'annotations'):
        value = content.get(part)
        if value is None and (annotated or part != 'annotations'):
            yield f'has no `{part}`; it has {shorten(map(repr, content), 10) or "nothing"}'
        elif value is not None and not isinstance(value, list):
            yield f'`{part}` is a {type(value).__name__}; expected a list'
    categories = content.get('categories')
    if isinstance(categories, list):
        yield from _of_categories(categories)


def _of_categories(categories: list) -> Iterator[str]:
    bad = [i for i, one in enumerate(categories) if not (isinstance(one, dict) and type(one.get('id')) in _IDS)]
    bad += [i for i, one in enumerate(categories) if i not in bad and not isinstance(one.get('name'), str)]
    if bad:
        yield f'{len(bad)} categories without an id, or without a name that is a text: entry {shorten(sorted(bad))}'
        return
    for key in ('id', 'name'):
        twice = [one for one, count in Counter(category[key] for category in categories).items() if count > 1]
        if twice:
            yield f'several categories have the same {key}: {shorten(map(repr, twice))}'


@dataclass
class _Rows:
    """Entries that are looked at, with their positions in the file's list; what fails a check goes into `found`."""

    found: Examined
    part: str
    at: Sequence[int]
    entries: list

    def column(self, key: str) -> list:
        """The field of each, None where it is missing."""
        try:
            return list(map(itemgetter(key), self.entries))
        except KeyError:
            return [entry.get(key) for entry in self.entries]

    def without(self, bad: Iterable[bool], text: str, effect: str) -> '_Rows':
        """Note the entries that are bad; returns the others."""
        bad = list(bad)
        if not any(bad):
            return self
        self.found.defects.append(Defect(self.part, text, list(compress(self.at, bad)), effect))
        good = [not one for one in bad]
        return _Rows(self.found, self.part, list(compress(self.at, good)), list(compress(self.entries, good)))

    def of_type(self, key: str, types: set[type], kind: str, effect: str = 'crash') -> '_Rows':
        """Note the entries whose field is missing or of another type."""
        column = self.column(key)
        if set(map(type, column)) <= types:
            return self
        rows = self.without((value is None for value in column), f'no `{key}`', effect)
        column = [value for value in column if value is not None]
        bad = [type(value) not in types for value in column]
        example = next(compress(column, bad), None)
        return rows.without(bad, f'`{key}` is not {kind} ({repr(example)[:40]})', effect)


def _rows(found: Examined, part: str, entries: list) -> _Rows:
    rows = _Rows(found, part, range(len(entries)), entries)
    if not set(map(type, entries)) <= {dict}:
        rows = rows.without((type(entry) is not dict for entry in entries), 'no object', 'crash')
    rows = rows.of_type('id', _IDS, 'a number')
    ids = rows.column('id')
    if len(set(ids)) < len(ids):
        twice = [one for one, count in Counter(ids).items() if count > 1]
        found.faults.append(f'{len(twice)} ids of {part} occur more than once: {shorten(twice)}. Give each its own')
    return rows


def _of_images(found: Examined, images: list) -> None:
    rows = _rows(found, 'images', images).of_type('file_name', {str}, 'a text')
    for key in ('height', 'width'):
        rows = rows.of_type(key, _NUMBERS, 'a number')
        rows = rows.without((not size > 0 for size in rows.column(key)), f'`{key}` is not above 0', 'crash')


def _of_annotations(found: Examined, metric: bool) -> None:
    rows = _rows(found, 'annotations', found.content.get('annotations') or [])
    ignored = rows.column('ignore')
    if not metric and any(ignored):  # the toolbox skips them before it looks
        kept = [not one for one in ignored]
        rows = _Rows(found, rows.part, list(compress(rows.at, kept)), list(compress(rows.entries, kept)))
    rows = rows.of_type('image_id', _IDS, 'a number').of_type('category_id', _IDS, 'a number')
    rows = rows.of_type('bbox', {list}, 'a list').of_type('area', _NUMBERS, 'a number')
    if metric:
        rows = rows.of_type('iscrowd', {int, bool}, '0 or 1', 'metric')
    images = [one for one in found.content['images'] if type(one) is dict and type(one.get('id')) in _IDS]
    sizes = {one['id']: _size(one) for one in images}
    rows = _references(rows, 'image_id', set(sizes), 'images')
    rows = _references(rows, 'category_id', {one['id'] for one in found.content['categories']}, 'categories')
    rows = _boxes(rows, sizes)
    if found.masks:
        _masks(_of_classes(rows, found.classes), sizes)


def _of_classes(rows: _Rows, classes: list[str] | None) -> _Rows:
    ids = {one['name']: one['id'] for one in rows.found.content['categories']}
    if classes is None or not set(classes) <= set(ids):
        return rows
    chosen = {ids[name] for name in classes}
    ours = [category in chosen for category in rows.column('category_id')]
    return _Rows(rows.found, rows.part, list(compress(rows.at, ours)), list(compress(rows.entries, ours)))


def _references(rows: _Rows, key: str, known: set, part: str) -> _Rows:
    column = rows.column(key)
    unknown = set(column) - known
    if not unknown:
        return rows
    text = f'`{key}` is not among the {part} ({shorten(map(repr, sorted(unknown, key=str)))})'
    effect = 'surplus' if part == 'images' else 'unmatched'
    if {str(one) for one in unknown} & {str(one) for one in known}:
        text, effect = f'{text}; here a text, there a number', 'unmatched'
    return rows.without((value in unknown for value in column), text, effect)


def _boxes(rows: _Rows, sizes: dict) -> _Rows:
    boxes = rows.column('bbox')
    if not (set(map(len, boxes)) <= {4} and set(map(type, chain.from_iterable(boxes))) <= _NUMBERS):
        bad = [len(box) != 4 or not {type(value) for value in box} <= _NUMBERS for box in boxes]
        rows = rows.without(bad, f'`bbox` is not four numbers ({repr(next(compress(boxes, bad)))[:60]})', 'crash')
        boxes = rows.column('bbox')
    count = len(boxes)
    x, y, w, h = np.fromiter(chain.from_iterable(boxes), np.float64, 4 * count).reshape(-1, 4).T
    sides = chain.from_iterable(map(sizes.__getitem__, rows.column('image_id')))
    height, width = np.fromiter(sides, np.float64, 2 * count).reshape(-1, 2).T
    area = np.fromiter(rows.column('area'), np.float64, count)
    with np.errstate(invalid='ignore'):
        across = np.minimum(x + w, width) - np.maximum(x, 0)
        down = np.minimum(y + h, height) - np.maximum(y, 0)
        empty = ~((across > 0) & (down > 0) & (area > 0) & (w >= 1) & (h >= 1))  # a NaN compares false
    return rows.without(empty.tolist(), 'without area or outside their image', 'empty') if empty.any() else rows


def _size(image: dict) -> tuple[float, ...]:
    """Height and width, without a bound where the file does not say them, which is a defect of the image."""
    sides = (image.get(key) for key in ('height', 'width'))
    return tuple(side if type(side) in _NUMBERS and side > 0 else math.inf for side in sides)


def _masks(rows: _Rows, sizes: dict) -> None:
    faults: dict[int, tuple[str, str]] = {}
    for i, segmentation in enumerate(rows.column('segmentation')):
        if type(segmentation) is list and len(segmentation) == 1:  # most are one sound polygon
            first = segmentation[0]
            if type(first) is list and len(first) >= 6 and not len(first) % 2 and type(first[0]) in _NUMBERS:
                continue
        fault = _mask_fault(segmentation, sizes[rows.entries[i]['image_id']])
        if fault is not None:
            faults[i] = fault
    for text, effect in dict.fromkeys(faults.values()):
        bad = [rows.at[i] for i, fault in faults.items() if fault == (text, effect)]
        rows.found.defects.append(Defect('annotations', text, bad, effect))


def _mask_fault(segmentation, size: tuple) -> tuple[str, str] | None:
    """What is wrong with a segmentation, and what comes of it."""
    if segmentation is None or segmentation == [] or segmentation == {}:
        return 'no `segmentation`', 'crash'
    if isinstance(segmentation, list):
        if not all(isinstance(one, list) for one in segmentation):
            return '`segmentation` is no list of polygons ([[x1, y1, x2, y2, ...], ...])', 'crash'
        if not any(len(one) >= 6 and not len(one) % 2 for one in segmentation) or len(segmentation[0]) < 6:
            return '`segmentation` has no polygon of three points ([x1, y1, x2, y2, x3, y3])', 'drop'
        if any(type(value) not in _NUMBERS for one in segmentation for value in one[:2]):
            return 'coordinates in `segmentation` are not numbers', 'crash'
        return None
    if not isinstance(segmentation, dict):
        return f'`segmentation` is a {type(segmentation).__name__}; expected polygons or an RLE', 'crash'
    counts, stated = segmentation.get('counts'), segmentation.get('size')
    if not isinstance(counts, (list, str)) or not isinstance(stated, list) or len(stated) != 2:
        return 'an RLE without `counts` or `size`', 'drop'
    if tuple(stated) != tuple(size):
        return 'the `size` of an RLE is not the (height, width) of the image', 'crash'
    if isinstance(counts, list) and sum(counts) != stated[0] * stated[1]:
        return 'the `counts` of an RLE do not add up to its `size`', 'crash'
    return None
