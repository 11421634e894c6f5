"""Transforms of images with any number of channels, `(H, W, C)`: loading, and the published augmentation of cells.

Drawn from NumPy's global generator, which `seed_worker` seeds by a sample's place in training. OpenCV and NumPy only;
the arithmetic is that of albumentations 1.x, which the published code uses.

Source: the training of FastChannelVim, Kapse et al., arXiv 2502.00594.
"""

from pathlib import Path

import cv2
import numpy as np

from mmvmamba.registry import TRANSFORMS

from .report import DataError

LAYOUTS = ('CHW', 'HWC')
_MOST = 4  # channels that OpenCV's geometry takes at once


def read_planes(path: str | Path, layout: str = 'CHW') -> np.ndarray:
    """Read an image of several channels.

    Args:
        path: `.npy`, or `.tif` / `.tiff` with a page for each channel (or one page of several).
        layout: of an `.npy` file's axes.

    Returns:
        `(H, W, C)`, whatever the file's numbers are.

    Raises:
        DataError: no such file, one that cannot be read, or no such array; with its path.
    """
    path = Path(path)
    try:
        if path.suffix == '.npy':
            image = np.load(path, allow_pickle=False)
        elif path.suffix.lower() in ('.tif', '.tiff'):
            read, pages = cv2.imreadmulti(str(path), flags=cv2.IMREAD_UNCHANGED)
            if not read or not pages:
                raise ValueError('OpenCV cannot read it')
            image, layout = (np.stack(pages), 'CHW') if pages[0].ndim == 2 else (pages[0], 'HWC')
        else:
            raise ValueError('expected .npy, .tif or .tiff')
    except (OSError, ValueError, cv2.error) as error:
        raise DataError(f'{path}: {error}') from error
    if image.ndim != 3 or 0 in image.shape or image.dtype.kind not in 'uif':
        raise DataError(f'{path}: an array {image.shape} of {image.dtype}; expected numbers with the axes {layout}')
    return np.ascontiguousarray(image.transpose(1, 2, 0)) if layout == 'CHW' else image


@TRANSFORMS.register_module()
class LoadPlanes:
    """Load an image of many channels.

    Args:
        channels: how many it must have; None takes any number.
        layout: axes of an `.npy` file, 'CHW' or 'HWC'.

    Reads `img_path`; writes `img (H, W, C)` float32, `img_shape`, `ori_shape`.
    """

    def __init__(self, channels: int | None = None, layout: str = 'CHW'):
        if layout not in LAYOUTS:
            raise ValueError(f'LoadPlanes: layout={layout!r} is unknown; expected one of {LAYOUTS}')
        self.channels, self.layout = channels, layout

    def __call__(self, results: dict) -> dict:
        image = read_planes(results['img_path'], self.layout)
        if self.channels is not None and image.shape[2] != self.channels:
            raise DataError(
                f'{results["img_path"]}: {image.shape[2]} channels; expected {self.channels} (layout={self.layout!r})'
            )
        shape = image.shape[:2]
        return {**results, 'img': image.astype(np.float32), 'img_shape': shape, 'ori_shape': shape}


@TRANSFORMS.register_module()
class PadAndRandomCrop:
    """Pad with zeros, at a random place, to at least a size; then crop at random.

    Args:
        pad: least side after padding.
        crop: side of what is kept.
    """

    def __init__(self, pad: int = 256, crop: int = 224):
        if crop > pad:
            raise ValueError(f'PadAndRandomCrop: crop={crop!r}; expected at most pad={pad!r}')
        self.pad, self.crop = pad, crop

    def __call__(self, results: dict) -> dict:
        image = results['img']
        missing = [max(self.pad - side, 0) for side in image.shape[:2]]
        before = [np.random.randint(m + 1) for m in missing]
        margins = [(b, m - b) for b, m in zip(before, missing, strict=True)]
        image = np.pad(image, [*margins, (0, 0)])
        top, left = (np.random.randint(side - self.crop + 1) for side in image.shape[:2])
        image = np.ascontiguousarray(image[top : top + self.crop, left : left + self.crop])
        return {**results, 'img': image, 'img_shape': image.shape[:2]}


@TRANSFORMS.register_module()
class RandomFlipOrRotate:
    """One of: left-right flip, top-bottom flip, rotation by an angle drawn from +-each of `degrees`.

    A rotation keeps the size; what it uncovers is mirrored in.

    Args:
        prob: of doing any.
        degrees: largest angles of the rotations.
    """

    def __init__(self, prob: float = 0.5, degrees: tuple[float, ...] = (90, 180, 270)):
        self.prob, self.degrees = prob, tuple(degrees)

    def __call__(self, results: dict) -> dict:
        if np.random.rand() >= self.prob:
            return results
        kind = np.random.randint(2 + len(self.degrees))
        image = results['img']
        if kind < 2:
            image = image[:, ::-1] if kind == 0 else image[::-1]
        else:
            limit = self.degrees[kind - 2]
            image = _rotated(image, np.random.uniform(-limit, limit))
        return {**results, 'img': np.ascontiguousarray(image)}


def _rotated(image: np.ndarray, degrees: float) -> np.ndarray:
    """Counter-clockwise about the centre."""
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), degrees, 1.0)
    options = dict(flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    parts = [
        cv2.warpAffine(image[..., c : c + _MOST], turn, (width, height), **options).reshape(height, width, -1)
        for c in range(0, image.shape[2], _MOST)
    ]
    return np.concatenate(parts, axis=2)


@TRANSFORMS.register_module()
class RandomDefocus:
    """Blur as a lens out of focus does: a disc of whole radius whose edge is a little soft.

    Args:
        radius: least and largest, in pixels.
        alias_blur: least and largest deviation of the soft edge, in pixels.
        prob: of doing it.
    """

    def __init__(self, radius=(1, 3), alias_blur=(0.1, 0.5), prob: float = 0.5):
        self.radius, self.alias_blur, self.prob = tuple(radius), tuple(alias_blur), prob

    def __call__(self, results: dict) -> dict:
        if np.random.rand() >= self.prob:
            return results
        radius = np.random.randint(self.radius[0], self.radius[1] + 1)
        kernel = _disc(radius, np.random.uniform(*self.alias_blur))
        image = results['img']
        blurred = [cv2.filter2D(np.ascontiguousarray(image[..., c]), -1, kernel) for c in range(image.shape[2])]
        return {**results, 'img': np.stack(blurred, axis=2)}


def _disc(radius: int, deviation: float) -> np.ndarray:
    """A kernel that adds up to one."""
    reach = np.arange(-max(8, radius), max(8, radius) + 1)
    inside = (reach[None] ** 2 + reach[:, None] ** 2 <= radius**2).astype(np.float32)
    side = 3 if radius <= 8 else 5
    return cv2.GaussianBlur(inside / inside.sum(), (side, side), sigmaX=deviation)


@TRANSFORMS.register_module()
class RandomHoles:
    """Set square holes to zero, in all channels (coarse dropout).

    Args:
        count: of holes, which may overlap.
        side: of a hole in pixels.
        prob: of doing it.
    """

    def __init__(self, count: int = 10, side: int = 10, prob: float = 0.5):
        self.count, self.side, self.prob = count, side, prob

    def __call__(self, results: dict) -> dict:
        if np.random.rand() >= self.prob:
            return results
        image = results['img'].copy()
        for _ in range(self.count):
            top, left = (np.random.randint(max(length - self.side, 0) + 1) for length in image.shape[:2])
            image[top : top + self.side, left : left + self.side] = 0
        return {**results, 'img': image}
