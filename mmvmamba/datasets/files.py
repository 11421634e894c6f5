"""Image files and folders: what is there, what can be read, what size it has."""

import os
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import cv2
import mmcv
from PIL import Image

_ENDS = {b'\xff\xd8': b'\xff\xd9', b'\x89P': b'IEND'}  # first bytes of a JPEG, a PNG; what must come near the end
_TAIL = 65536  # cameras append things
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # the tag, and its values that exchange height and width
_LISTED = 100_000
# SyntaxError: Pillow's for a broken PNG; AssertionError: mmcv's for what is no image
_UNREADABLE = (OSError, ValueError, AssertionError, SyntaxError, cv2.error)


def missing(paths: Iterable[str]) -> list[str]:
    """Those that do not exist; lists each folder once, which is faster than asking for each file."""
    folders: dict[str, set[str]] = {}
    absent = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
        if name not in folders[folder]:
            absent.append(path)
    return absent


def suffixes(folder: str | Path) -> str:
    """What lies in a folder and below, by suffix, in words."""
    if not os.path.isdir(folder):
        return 'the folder does not exist'
    paths = (os.path.join(path, name) for path, _, names in os.walk(folder, followlinks=True) for name in names)
    found = list(islice(paths, _LISTED))
    if not found:
        return 'the folder is empty'
    counts = Counter(os.path.splitext(path)[1] or 'no suffix' for path in found)
    listed = ', '.join(f'{suffix} ({count})' for suffix, count in counts.most_common(8))
    return f'the folder has {listed}, for example {os.path.relpath(found[0], folder)}'


def is_cut(path: str | Path) -> bool:
    """Whether the end of a JPEG or PNG is missing: decoders fill up with grey and say nothing."""
    if not os.path.isfile(path):  # a file backend read it
        return False
    with open(path, 'rb') as file:
        end = _ENDS.get(file.read(2))
        file.seek(max(0, Path(path).stat().st_size - _TAIL))
        return end is not None and end not in file.read()


def image_fault(path: str, decode: bool = True) -> str | None:
    """Why a local image cannot be used, None if it can.

    Args:
        decode: read all of it; otherwise its head and its end, which takes a tenth of a millisecond.
    """
    try:
        if not os.path.getsize(path):
            return 'the file is empty'
        if is_cut(path):
            return 'the file is cut off'
        if not decode:
            try:
                Image.open(path).close()
                return None
            except _UNREADABLE:
                pass  # OpenCV reads kinds that Pillow does not
        if mmcv.imread(path, flag='unchanged') is None:
            return 'no image that can be read'
    except _UNREADABLE as error:
        return f'{type(error).__name__}: {" ".join(str(error).split())}'
    return None


def image_sizes(path: str) -> list[tuple[int, int]]:
    """(height, width) as stored and, if a tag says that it is to be turned, as shown."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _TURNED
    except _UNREADABLE:
        height, width = mmcv.imread(path, flag='unchanged').shape[:2]
        turned = False
    return [(height, width), (width, height)] if turned else [(height, width)]


def spread(count: int, samples: int) -> list[int]:
    """`samples` positions of `count`, evenly spread; all of them if they are fewer."""
    if samples >= count:
        return list(range(count))
    return [round(i * (count - 1) / max(samples - 1, 1)) for i in range(samples)]
