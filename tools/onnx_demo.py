"""Run a file of tools/export.py on an image and draw what it says: no PyTorch, only onnxruntime, numpy and Pillow.

Classifiers: the five likeliest classes. Segmentors: classes over the image. Detectors: boxes and masks. Backbones: how
strong each map is where.

Example:
    python tools/onnx_demo.py street.jpg upernet.onnx --out street_classes.png
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

_SIDES = {'classifier': 224, 'segmentor': 512, 'detector': 800, 'backbone': 512}
_LEGIBLE = 320  # pixels of the shorter side of a picture with text
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of what a backbone alone is given: ImageNet's


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', metavar='IMAGE', type=Path, help='image file')
    parser.add_argument('model', metavar='MODEL', type=Path, help='.onnx file of tools/export.py')
    parser.add_argument('--out', type=Path, metavar='FILE', help='picture (default: IMAGE_onnx.png in this folder)')
    parser.add_argument(
        '--side',
        type=int,
        help='pixels of the shorter side (default: 224 for classifiers, 800 for detectors, else 512)',
    )
    parser.add_argument('--score', type=float, help='of detectors: instances that score more (default: as configured)')
    return parser.parse_args(argv)


def _read(path: Path, side: int, known: list) -> Image.Image:
    """The image; `known` is the shape `(B, 3, H, W)` that the file takes, with numbers where it takes no other."""
    image = Image.open(path).convert('RGB')
    height, width = known[2:]
    if isinstance(height, int) and isinstance(width, int):
        return image.resize((width, height), Image.Resampling.BILINEAR)
    factor = side / min(image.size)
    return image.resize([max(side, round(length * factor)) for length in image.size], Image.Resampling.BILINEAR)


def _session(path: Path):
    """The session and what the file says of itself."""
    if not path.is_file():
        raise FileNotFoundError(f'model {path} does not exist')
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f'{path} is run by onnxruntime ({error}): pip install onnxruntime') from error

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no warning that an optional input is one
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    known = session.get_modelmeta().custom_metadata_map
    facts = {key.removeprefix('mmvmamba.'): value for key, value in known.items() if key.startswith('mmvmamba.')}
    if facts.get('task') not in _SIDES:
        raise ValueError(f'{path} does not say what it is; expected a file written by tools/export.py')
    return session, facts


def _tensor(image: Image.Image, facts: dict[str, str]) -> np.ndarray:
    """`(1, 3, H, W)`, float32."""
    pixels = np.asarray(image, dtype=np.float32)
    if facts['input'] == 'normalised':
        pixels = (pixels - np.float32(_MEAN)) / np.float32(_STD)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def _legible(image: Image.Image) -> Image.Image:
    """The image, enlarged by a whole number where text would cover it."""
    return ImageOps.scale(image, -(-_LEGIBLE // min(image.size)), Image.Resampling.NEAREST)


def _draw_classes(image: Image.Image, probabilities: np.ndarray, facts: dict[str, str]) -> Image.Image:
    names = json.loads(facts.get('classes', '[]'))
    best = np.argsort(-probabilities[0])[:5]
    lines = [f'{names[i] if i < len(names) else f"class {i}"}: {probabilities[0, i]:.3f}' for i in best]
    print('\n'.join(lines))
    image = _legible(image)
    ImageDraw.Draw(image).multiline_text((5, 5), '\n'.join(lines), fill='white', stroke_fill='black', stroke_width=2)
    return image


def _draw_class_map(image: Image.Image, class_map: np.ndarray, facts: dict[str, str]) -> Image.Image:
    names, palette = (json.loads(facts.get(key, '[]')) for key in ('classes', 'palette'))
    present, counts = np.unique(class_map[0], return_counts=True)
    missing = np.random.default_rng(0).integers(0, 256, (int(present.max()) + 1, 3))  # colours of classes without one
    missing[: len(palette)] = np.array(palette[: len(missing)], dtype=int).reshape(-1, 3)
    colours = missing.astype(np.uint8)
    picture = _legible(Image.blend(image, Image.fromarray(colours[class_map[0]]), 0.5))
    draw = ImageDraw.Draw(picture)
    order = np.argsort(-counts)
    for line, i in enumerate(order[:10]):
        label = int(present[i])
        text = f'{names[label] if label < len(names) else f"class {label}"} {counts[i] / class_map[0].size:.0%}'
        print(text)
        draw.rectangle((5, 5 + 14 * line, 15, 15 + 14 * line), fill=tuple(map(int, colours[label])), outline='white')
        draw.text((20, 4 + 14 * line), text, fill='white', stroke_fill='black', stroke_width=1)
    return picture


def _draw_instances(image: Image.Image, outputs: list[np.ndarray], facts: dict[str, str]) -> Image.Image:
    """Instances over the image, the best on top."""
    names, palette = (json.loads(facts.get(key, '[]')) for key in ('classes', 'palette'))
    boxes, scores, labels, *masks = outputs
    pixels = np.asarray(image).copy()
    others = np.random.default_rng(0).integers(0, 256, (int(labels.max(initial=0)) + 1, 3))
    colours = [tuple(map(int, palette[i] if i < len(palette) else others[i])) for i in labels]
    factor = -(-_LEGIBLE // min(image.size))
    for i in reversed(range(len(scores)) if masks else ()):
        pixels[masks[0][i]] = pixels[masks[0][i]] // 2 + np.array(colours[i], np.uint8) // 2
    picture = _legible(Image.fromarray(pixels))
    draw = ImageDraw.Draw(picture)
    for i in reversed(range(len(scores))):
        x1, y1, x2, y2 = (float(edge) * factor for edge in boxes[i])
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colours[i], width=2)
        name = names[labels[i]] if labels[i] < len(names) else f'class {labels[i]}'
        draw.text((x1 + 3, y1 + 1), f'{name} {scores[i]:.2f}', fill='white', stroke_fill='black', stroke_width=1)
        print(f'{name} {scores[i]:.3f}: {" ".join(f"{edge:.0f}" for edge in boxes[i])}')
    print(f'{len(scores)} instances')
    return picture


def _draw_maps(image: Image.Image, maps: list[np.ndarray]) -> Image.Image:
    """The image and, beside it, the norm of every map over its channels."""
    pictures = [image]
    for values in maps:
        strength = np.linalg.norm(values[0], axis=0)
        grey = 255 * (strength - strength.min()) / max(float(np.ptp(strength)), 1e-12)
        pictures.append(Image.fromarray(grey.astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST))
        print(f'map of {values.shape[1]} channels, {values.shape[2]} x {values.shape[3]}')
    wide = Image.new('RGB', (image.width * len(pictures), image.height))
    for i, picture in enumerate(pictures):
        wide.paste(picture.convert('RGB'), (i * image.width, 0))
    return wide


def run(arguments: argparse.Namespace) -> Path:
    """Draw; returns where the picture is."""
    session, facts = _session(arguments.model)
    taken = session.get_inputs()[0]
    image = _read(arguments.image, arguments.side or _SIDES[facts['task']], taken.shape)
    inputs = {taken.name: _tensor(image, facts)}
    if arguments.score is not None:
        if facts['task'] != 'detector':
            raise ValueError(f'--score is of detectors; {arguments.model} is a {facts["task"]}')
        inputs['score_threshold'] = np.array([arguments.score], np.float32)
    outputs = session.run(None, inputs)
    if facts['task'] == 'classifier':
        picture = _draw_classes(image, outputs[0], facts)
    elif facts['task'] == 'segmentor':
        picture = _draw_class_map(image, outputs[0], facts)
    elif facts['task'] == 'detector':
        picture = _draw_instances(image, outputs, facts)
    else:
        picture = _draw_maps(image, outputs)
    path = arguments.out or Path(f'{arguments.image.stem}_onnx.png')
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def main(argv: list[str] | None = None) -> int:
    try:
        print(f'Picture: {run(parse_arguments(argv))}')
    except (OSError, ValueError) as error:
        print(f'onnx_demo.py: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
