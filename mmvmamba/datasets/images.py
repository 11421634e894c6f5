"""Images by path, as the tools take them from a user: what can be read, and why the rest cannot."""

from collections import Counter
from pathlib import Path

import cv2
import mmcv
import numpy as np

from .files import is_cut

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.pnm', '.ppm', '.tif', '.tiff', '.webp')


class UnreadableImageError(ValueError):
    """A file that is no image, or half of one, by name."""


def read_image(path: str | Path) -> np.ndarray:
    """An image file as `(H, W, 3)`, uint8, in the order blue, green, red, as the toolboxes' pipelines read it.

    Raises:
        FileNotFoundError: no such file.
        UnreadableImageError: a folder, an empty file, no image, a damaged one; the message names the file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'image {path} does not exist')
    if not path.is_file():
        raise UnreadableImageError(f'{path} is no file; expected an image')
    if path.stat().st_size == 0:
        raise UnreadableImageError(f'{path} cannot be read: the file is empty')
    try:
        cut, image = is_cut(path), mmcv.imread(path)
    except (OSError, cv2.error, AssertionError, ValueError) as error:
        reason = ' '.join(str(error).split())
        raise UnreadableImageError(f'{path} cannot be read as an image: {reason}') from error
    if cut:
        raise UnreadableImageError(f'{path} cannot be read: the file is cut off')
    if image is None:
        raise UnreadableImageError(f'{path} cannot be read: it is no image, or of a kind that OpenCV does not know')
    return image


def readable_images(path: str | Path) -> tuple[list[Path], list[str]]:
    """The images that a path stands for, itself or those directly in a folder, sorted by name.

    Returns:
        Paths that can be read, and for every other what is wrong with it.

    Raises:
        FileNotFoundError: the path does not exist, or the folder has no image, with what lies there instead.
        UnreadableImageError: not one can be read.
    """
    readable, problems = [], []
    for image in _candidates(Path(path)):
        try:
            read_image(image)
        except (FileNotFoundError, UnreadableImageError) as error:  # a link may lead nowhere
            problems.append(str(error))
        else:
            readable.append(image)
    if not readable:
        raise UnreadableImageError('; '.join(problems))
    return readable, problems


def _candidates(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f'image {path} does not exist')
    if not path.is_dir():
        if path.suffix.lower() not in SUFFIXES:
            raise UnreadableImageError(f'{path}: expected an image, whose name ends in {", ".join(SUFFIXES)}')
        return [path]
    entries = sorted(path.iterdir())
    images = [entry for entry in entries if entry.suffix.lower() in SUFFIXES and not entry.is_dir()]
    if not images:
        kinds = Counter('folders' if entry.is_dir() else entry.suffix or 'without suffix' for entry in entries)
        found = ', '.join(f'{count} {kind}' for kind, count in kinds.most_common(5)) or 'nothing'
        raise FileNotFoundError(
            f'folder {path} has no image; expected files ending in {", ".join(SUFFIXES)}, found {found}'
        )
    return images
