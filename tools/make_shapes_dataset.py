"""Write a small dataset of textured shapes on cluttered backgrounds, in COCO's and in ADE20K's layout, or in folders.

The same pictures serve detection and segmentation: instances (boxes and masks) of five shapes, and a label for every
pixel of the shapes and of three kinds of background. For classification, pictures with one shape, a folder a class. A
seed decides everything; the same seed writes the same bytes.

    OUT/coco/annotations/instances_{train,val}2017.json    OUT/coco/{train,val}2017/*.jpg
    OUT/ade/images/{training,validation}/*.jpg             OUT/ade/annotations/{training,validation}/*.png
    OUT/cls/{train,val}/{circle,triangle,...}/*.jpg        with --classification, alone

Examples:
    python tools/make_shapes_dataset.py data/shapes
    python tools/make_shapes_dataset.py data/shapes --classification --train 1000 --val 200
"""

import argparse
import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

try:
    from pycocotools import mask as coco_mask
except ImportError as missing:
    sys.exit(f'make_shapes_dataset.py: {missing}; pip install pycocotools')

THINGS = ('circle', 'triangle', 'square', 'star', 'cross')
STUFF = ('sky', 'wall', 'ground')
UNLABELLED = 0  # what ADE20K's label files call "other"; reduce_zero_label ignores it
LABEL = {name: i + 1 for i, name in enumerate(STUFF + THINGS)}
CATEGORY_ID = dict(zip(THINGS, (3, 7, 8, 21, 44), strict=True))  # with gaps, as COCO's are
PALETTE = {
    'sky': (90, 160, 220),
    'wall': (170, 120, 90),
    'ground': (110, 150, 80),
    'circle': (220, 60, 60),
    'triangle': (240, 190, 40),
    'square': (60, 180, 170),
    'star': (150, 80, 200),
    'cross': (240, 120, 180),
}
ASPECTS = ((1.0, 1.0), (4 / 3, 1.0), (1.0, 4 / 3), (1.5, 1.0), (1.0, 1.17), (1.71, 1.03))
HUE = dict(zip(THINGS, (0, 72, 144, 216, 288), strict=True))  # typical colours, so that a short training gets somewhere
HUE_SPREAD = 50  # degrees; the ranges overlap, so colour hints but only the outline decides
SUPERSAMPLING = 4
EMPTY_SHARE, CROWD_SHARE = 0.05, 0.08
ONE_RADII = (0.28, 0.42)  # of the only shape of a picture, in shorter sides


@dataclass
class Instance:
    """A shape, or a crowd of small ones, as drawn."""

    name: str
    visible: np.ndarray  # (H, W) bool; what later shapes cover is taken away
    crowd: bool = False


@dataclass
class Scene:
    """A picture `(H, W, 3)` uint8 BGR, its labels `(H, W)` uint8 and its instances."""

    image: np.ndarray
    labels: np.ndarray
    instances: list[Instance] = field(default_factory=list)


def _noise(rng, height, width, cell):
    """Smooth noise in [0, 1] whose features are about `cell` pixels wide."""
    coarse = rng.random((max(2, height // cell + 2), max(2, width // cell + 2)), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def _pattern(rng, height, width):
    """A random texture in [0, 1]: stripes, checks, dots, a gradient, noise or nothing."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    kind = rng.integers(6)
    if kind == 0:
        return (np.sin(2 * np.pi * along / period) > 0).astype(np.float32)
    if kind == 1:
        return ((np.sin(2 * np.pi * along / period) > 0) ^ (np.sin(2 * np.pi * across / period) > 0)).astype(np.float32)
    if kind == 2:
        return ((along % period - period / 2) ** 2 + (across % period - period / 2) ** 2 < (period / 3.5) ** 2).astype(
            np.float32
        )
    if kind == 3:
        return (along - along.min()) / max(float(np.ptp(along)), 1.0)
    if kind == 4:
        return _noise(rng, height, width, 4)
    return np.zeros((height, width), np.float32)


def _textured(rng, height, width, hue=None):
    """A whole picture in two shades around a hue in degrees (a random one unless given), in BGR."""
    centre = rng.uniform(0, 360) if hue is None else hue
    hues = (centre + rng.uniform(-HUE_SPREAD, HUE_SPREAD) + np.array([0.0, rng.uniform(-25, 25)])) % 360
    saturation, value = rng.uniform([0.35, 0.55], [1.0, 1.0], (2, 2)).T
    value[1] *= 0.5
    shades = np.stack([hues, saturation, value], 1)[None].astype(np.float32)
    first, second = cv2.cvtColor(shades, cv2.COLOR_HSV2BGR)[0] * 255
    pattern = _pattern(rng, height, width)[..., None]
    return first * (1 - 0.8 * pattern) + second * 0.8 * pattern


def _background(rng, height, width):
    """Sky over ground, most often a wall standing between them; each with a texture of its own kind."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    horizon = height * rng.uniform(0.35, 0.65) + np.tan(rng.uniform(-0.15, 0.15)) * (x - width / 2)
    labels = np.where(y < horizon, LABEL['sky'], LABEL['ground']).astype(np.uint8)
    light = rng.uniform(0.75, 1.15)

    clouds = _noise(rng, height, width, 24)[..., None]
    image = (1 - clouds) * np.float32([215, 160, 100]) + clouds * np.float32([245, 235, 225])
    grain = rng.random((height, width, 1), dtype=np.float32) * 0.6 + _noise(rng, height, width, 10)[..., None] * 0.4
    ground = (1 - grain) * np.float32([40, 90, 70]) + grain * np.float32([90, 170, 130])
    image = np.where((labels == LABEL['ground'])[..., None], ground, image)

    if rng.random() < 0.75:
        left, right = np.sort(rng.uniform(-0.1, 1.1, 2)) * width
        top = height * rng.uniform(0.1, 0.4)
        inside = (x > left) & (x < max(right, left + 0.25 * width)) & (y > top) & (y < horizon + height * 0.05)
        rows = np.floor(y / 8)
        mortar = (y % 8 < 1.5) | ((x + 8 * (rows % 2)) % 16 < 1.5)
        bricks = np.where(mortar[..., None], np.float32([170, 180, 185]), np.float32([70, 95, 160]))
        bricks = bricks + 30 * (_noise(rng, height, width, 6)[..., None] - 0.5)
        image, labels = np.where(inside[..., None], bricks, image), np.where(inside, LABEL['wall'], labels)
    return (image * light).astype(np.float32), labels.astype(np.uint8)


def _clutter(rng, image, labels):
    """Lines over everything, and unlabelled blobs whose outlines are none of the shapes'."""
    height, width = labels.shape
    for _ in range(rng.integers(0, 3)):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radii = rng.uniform(0.04, 0.13, 9) * min(height, width)
        centre = rng.uniform(0, 1, 2) * (width, height)
        points = (centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)).astype(np.int32)
        blob = np.zeros_like(labels)
        cv2.fillPoly(blob, [points], 1)
        image = np.where(blob[..., None] > 0, _textured(rng, height, width), image)
        labels[blob > 0] = UNLABELLED
    image = np.ascontiguousarray(image)
    for _ in range(rng.integers(2, 7)):
        ends = (rng.uniform(0, 1, (2, 2)) * (width, height)).astype(int)
        cv2.line(image, *map(tuple, ends.tolist()), rng.integers(0, 255, 3).tolist(), 1, cv2.LINE_AA)
    return image, labels


def _outline(rng, name):
    """The shape's corners around the origin with circumradius 1, turned at random: `(P, 2)`."""
    if name == 'circle':
        squeeze = rng.uniform(0.75, 1.0)
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        points = np.stack([np.cos(angles), squeeze * np.sin(angles)], 1)
    elif name in ('triangle', 'square'):
        corners = 3 if name == 'triangle' else 4
        angles = np.arange(corners) * 2 * np.pi / corners
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.85, 1.0, (1, 2))
    elif name == 'star':
        angles = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2, rng.uniform(0.36, 0.46), 1.0)
        points = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    else:
        arm = rng.uniform(0.26, 0.36)
        quarter = np.array([(arm, -1), (arm, -arm), (1, -arm)])  # corners of one arm; the others are turned copies
        quarter_turn = np.array([[0, -1], [1, 0]])
        arms = [quarter @ np.linalg.matrix_power(quarter_turn, k).T for k in range(4)]
        points = np.concatenate(arms) / np.hypot(1, arm)
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ turn.T


def _coverage(points, height, width):
    """How much of each pixel a polygon covers, `(H, W)` in [0, 1]."""
    fine = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    cv2.fillPoly(fine, [np.round(points * SUPERSAMPLING).astype(np.int32)], 255)
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _paint(rng, scene, coverage, hue):
    """Blend a textured, slightly shaded copy of what `coverage` covers into the picture; return its mask."""
    height, width = coverage.shape
    shade = rng.uniform(0.85, 1.15)
    rim = cv2.GaussianBlur(coverage, (0, 0), 2.0) - coverage  # a soft shadow just outside the outline
    scene.image *= 1 - 0.5 * rim.clip(0, 1)[..., None]
    alpha = coverage[..., None]
    scene.image[:] = scene.image * (1 - alpha) + _textured(rng, height, width, hue) * shade * alpha
    return coverage >= 0.5


def _add_shape(rng, scene, name=None, radii=(0.13, 0.3)):
    """Try to place one shape, of any kind unless named, such that it and those behind it stay recognisable."""
    height, width = scene.labels.shape
    name = THINGS[rng.integers(len(THINGS))] if name is None else name
    radius = rng.uniform(*radii) * min(height, width)
    centre = rng.uniform(0.7, 1.0) * radius + rng.uniform(0, 1, 2) * (np.array([width, height]) - 1.4 * radius)
    coverage = _coverage(centre + radius * _outline(rng, name), height, width)
    mask = coverage >= 0.5
    if mask.sum() < 60:
        return
    for other in scene.instances:
        if (other.visible & mask).sum() > (0 if other.crowd else 0.45) * other.visible.sum():
            return
    _paint(rng, scene, coverage, HUE[name])
    for other in scene.instances:
        other.visible &= ~mask
    scene.labels[mask] = LABEL[name]
    scene.instances.append(Instance(name, mask))


def _add_crowd(rng, scene):
    """A cluster of small shapes of one kind, annotated as one crowd."""
    height, width = scene.labels.shape
    name = THINGS[rng.integers(len(THINGS))]
    radius = 0.05 * min(height, width)
    centre = rng.uniform(0.25, 0.75, 2) * (width, height)
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(10, 16)):
        coverage = _coverage(
            centre + rng.normal(0, 3 * radius, 2) + radius * rng.uniform(0.7, 1.2) * _outline(rng, name), height, width
        )
        mask |= _paint(rng, scene, coverage, HUE[name])
    if mask.any():
        scene.labels[mask] = LABEL[name]
        scene.instances.append(Instance(name, mask, crowd=True))


def render(rng: np.random.Generator, size: int) -> Scene:
    """Draw one scene whose shorter side is about `size` pixels."""
    scene = _empty_scene(rng, size)
    if rng.random() >= EMPTY_SHARE:
        if rng.random() < CROWD_SHARE:
            _add_crowd(rng, scene)
        wanted = len(scene.instances) + rng.integers(1, 6)
        for _ in range(12):
            if len(scene.instances) < wanted:
                _add_shape(rng, scene)
    return _photographed(rng, scene)


def render_one(rng: np.random.Generator, size: int, name: str) -> Scene:
    """Draw one scene with one large shape of a name."""
    scene = _empty_scene(rng, size)
    _add_shape(rng, scene, name, ONE_RADII)
    return _photographed(rng, scene)


def _empty_scene(rng, size):
    """A background of some aspect ratio, cluttered."""
    aspect = ASPECTS[rng.integers(len(ASPECTS))]
    width, height = (round(size * factor) for factor in aspect)
    return Scene(*_clutter(rng, *_background(rng, height, width)))


def _photographed(rng, scene):
    """The scene, a little blurred and noisy, in 8 bits."""
    image = cv2.GaussianBlur(scene.image, (0, 0), rng.uniform(0.3, 0.8)) + rng.normal(0, 4, scene.image.shape)
    scene.image = image.clip(0, 255).astype(np.uint8)
    return scene


def _polygons(visible):
    """COCO polygons of a mask: its outer contours, along pixel borders rather than through pixel centres."""
    zoom = 4
    fine = cv2.resize(visible.astype(np.uint8), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_L1)
    return [
        [round(float(v), 2) for v in ((contour[:, 0] + 0.5) / zoom).ravel()]
        for contour in contours
        if len(contour) >= 3 and cv2.contourArea(contour) >= 4 * zoom**2
    ]


def _annotation(instance, image_id, annotation_id):
    """One entry of COCO's `annotations`; area and box are those of the segmentation it carries."""
    height, width = instance.visible.shape
    if instance.crowd:
        flat = instance.visible.ravel(order='F').astype(np.int8)
        borders = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
        counts = np.diff(np.concatenate([[0], borders, [flat.size]])).tolist()
        segmentation = {'size': [height, width], 'counts': counts if counts[-1] else counts[:-1]}
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        segmentation = _polygons(instance.visible)
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return {
        'id': annotation_id,
        'image_id': image_id,
        'category_id': CATEGORY_ID[instance.name],
        'segmentation': segmentation,
        'area': float(coco_mask.area(rle)),
        'bbox': coco_mask.toBbox(rle).tolist(),
        'iscrowd': int(instance.crowd),
    }


def _write_labels(path, labels):
    """An indexed PNG whose palette shows the classes' colours; its values are the labels."""
    picture = Image.fromarray(labels, mode='P')
    palette = np.zeros((256, 3), np.uint8)
    for name, label in LABEL.items():
        palette[label] = PALETTE[name]
    picture.putpalette(palette.ravel().tolist())
    picture.save(path, optimize=True)


def write_split(out: Path, coco_split: str, ade_split: str, count: int, size: int, seed: int) -> dict[str, int]:
    """Render and write `count` scenes to both layouts; return how many instances each class has."""
    coco_images = out / 'coco' / coco_split
    ade_images, ade_labels = out / 'ade' / 'images' / ade_split, out / 'ade' / 'annotations' / ade_split
    for folder in (coco_images, ade_images, ade_labels, out / 'coco' / 'annotations'):
        folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        image_id = index + 1
        split_number = int(coco_split.startswith('val'))
        scene = render(np.random.default_rng([seed, split_number, index]), size)
        stem = f'{image_id:012d}'
        encoded = cv2.imencode('.jpg', scene.image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        for folder in (coco_images, ade_images):
            (folder / f'{stem}.jpg').write_bytes(encoded)
        _write_labels(ade_labels / f'{stem}.png', scene.labels)
        height, width = scene.labels.shape
        images.append({'id': image_id, 'file_name': f'{stem}.jpg', 'height': height, 'width': width, 'license': 1})
        for instance in scene.instances:
            annotations.append(_annotation(instance, image_id, len(annotations) + 1))
    content = {
        'info': {'description': 'mmvmamba shapes', 'version': '1.0', 'seed': seed},
        'licenses': [{'id': 1, 'name': 'CC0 1.0', 'url': 'https://creativecommons.org/publicdomain/zero/1.0/'}],
        'images': images,
        'annotations': annotations,
        'categories': [{'id': CATEGORY_ID[name], 'name': name, 'supercategory': 'shape'} for name in THINGS],
    }
    (out / 'coco' / 'annotations' / f'instances_{coco_split}.json').write_text(json.dumps(content))
    return {name: sum(a['category_id'] == CATEGORY_ID[name] for a in annotations) for name in THINGS}


def write_folders(out: Path, split: str, count: int, size: int, seed: int) -> None:
    """Render and write `count` scenes of one shape each, a folder a class; the classes take turns."""
    for name in THINGS:
        (out / split / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        name = THINGS[index % len(THINGS)]
        # streams 0 and 1 are those of the other layouts
        scene = render_one(np.random.default_rng([seed, 2 + (split == 'val'), index]), size, name)
        encoded = cv2.imencode('.jpg', scene.image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        (out / split / name / f'{index + 1:06d}.jpg').write_bytes(encoded)


def make_folders(out: Path, train: int, val: int, size: int, seed: int, overwrite: bool) -> None:
    """Write both splits of the classification set below `out / 'cls'`; see `make`."""
    out = out / 'cls'
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise FileExistsError(f'{out} is not empty; name another folder, or add --overwrite to replace its dataset')
        shutil.rmtree(out)
    for split, count in (('train', train), ('val', val)):
        write_folders(out, split, count, size, seed)
        print(f'{split}: {count} images of {len(THINGS)} classes')
    (out / 'classes.json').write_text(json.dumps({'classification': THINGS}, indent=2))
    print(f'folders: {out}\nclasses: {out / "classes.json"}')


def make(out: Path, train: int, val: int, size: int, seed: int, overwrite: bool) -> None:
    """Write both splits below `out`; refuse a folder that holds something, unless told to overwrite.

    Raises:
        FileExistsError: `out` is not empty and `overwrite` is not set.
    """
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise FileExistsError(f'{out} is not empty; name another folder, or add --overwrite to replace its dataset')
        for name in ('coco', 'ade'):
            shutil.rmtree(out / name, ignore_errors=True)
    for coco_split, ade_split, count in (('train2017', 'training', train), ('val2017', 'validation', val)):
        counts = write_split(out, coco_split, ade_split, count, size, seed)
        shown = ', '.join(f'{number} {name}' for name, number in counts.items())
        print(f'{coco_split}: {count} images; instances: {shown}')
    classes = {'detection': THINGS, 'segmentation': STUFF + THINGS, 'palette': PALETTE}
    (out / 'classes.json').write_text(json.dumps(classes, indent=2))
    print(f'COCO layout: {out / "coco"}\nADE20K layout: {out / "ade"}\nclasses: {out / "classes.json"}')


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, metavar='OUT', help='folder to write')
    parser.add_argument('--train', type=int, default=480, help='training images (default: %(default)s)')
    parser.add_argument('--val', type=int, default=80, help='held-out images (default: %(default)s)')
    parser.add_argument('--size', type=int, default=128, help='shorter side in pixels, about (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='decides every picture (default: %(default)s)')
    parser.add_argument('--classification', action='store_true', help='write OUT/cls, a folder a class, and no other')
    parser.add_argument(
        '--channels',
        type=int,
        help="write OUT/cells, a plate of cells of so many channels in JUMP-CP's layout, instead",
    )
    parser.add_argument('--overwrite', action='store_true', help='replace a dataset that is already there')
    arguments = parser.parse_args(argv)
    if arguments.size < 64 or min(arguments.train, arguments.val) < 1:
        parser.error('--size must be at least 64, --train and --val at least 1')
    if arguments.channels is not None and arguments.channels < 3:
        parser.error('--channels must be at least 3')
    write = make_folders if arguments.classification else make
    try:
        if arguments.channels is not None:
            import shapes_channels

            count = arguments.train + arguments.val  # which the dataset splits
            channels = (arguments.channels, arguments.size, arguments.seed, arguments.overwrite)
            shapes_channels.make(arguments.out, count, *channels)
            return 0
        write(arguments.out, arguments.train, arguments.val, arguments.size, arguments.seed, arguments.overwrite)
    except FileExistsError as error:
        parser.error(str(error))
    return 0


if __name__ == '__main__':
    sys.exit(main())
