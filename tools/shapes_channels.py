"""What `make_shapes_dataset.py --channels` writes: plates of cells under a microscope of many channels, as JUMP-CP's.

Every cell has a nucleus (channel 0), a body (channel 1) and organelles in the others; a target changes how the channels
relate. The plate's wells differ in brightness, so that no single intensity tells a target.
"""

import csv
import shutil
from pathlib import Path

import cv2
import numpy as np

TARGETS = ('kinase', 'protease', 'receptor', 'channel', 'polymerase')
CONTROL_SAMPLE = 'DMSO'
ROWS = 'ABCDEFGHIJKLMNOP'


def render_cells(rng: np.random.Generator, channels: int, size: int, target: int) -> np.ndarray:
    """Draw cells as `(channels, size, size)`, about 0 to 255; target 0 is the control.

    A target t > 0 moves the organelles of half of the channels behind the first two, from t - 1 on, to the rim of the
    cells and makes them brighter; from the second round through those channels on the nuclei are larger as well.
    """
    image = np.zeros((channels, size, size), np.float32)
    organelles = channels - 2
    for _ in range(rng.integers(4, 8)):
        centre, radius = rng.uniform(0.1, 0.9, 2) * size, rng.uniform(0.09, 0.14) * size
        nucleus = radius * (0.45 + 0.2 * (max(target - 1, 0) // organelles))
        _spot(image[0], centre, nucleus, 200)
        _spot(image[1], centre, radius, 110)
        for k in range(organelles):
            moved = target > 0 and (k - target + 1) % organelles < max(organelles // 2, 1)
            for angle in rng.uniform(0, 2 * np.pi, 9):
                reach = radius * (rng.uniform(1.0, 1.3) if moved else rng.uniform(0.1, 0.6))
                place = centre + reach * np.array([np.cos(angle), np.sin(angle)])
                _spot(image[2 + k], place, 0.14 * radius + 0.7, rng.uniform(90, 160) + 70 * moved)
    return np.stack([cv2.GaussianBlur(plane, (0, 0), 0.8) for plane in image])


def _spot(plane, centre, radius, value):
    x, y = (round(float(v) * 16) for v in centre)
    cv2.circle(plane, (x, y), round(float(radius) * 16), float(value), -1, cv2.LINE_AA, 4)


def write_plate(out: Path, count: int, channels: int, size: int, seed: int) -> int:
    """Write a plate's images, its table, plate map and metadata below `out`; return the number of wells.

    A tenth of the wells' images each; wells of all targets and of the control take turns.
    """
    (out / 'images').mkdir(parents=True)
    kinds = 1 + len(TARGETS)
    wells = max(kinds, min(384, count // 10))
    names = [f'{ROWS[i // 24]}{i % 24 + 1:02d}' for i in range(wells)]
    samples = [CONTROL_SAMPLE if i % kinds == 0 else f'BRD-{i % kinds:03d}-{i % 2}' for i in range(wells)]
    rows = []
    for index in range(count):
        well = index % wells
        light = np.random.default_rng([seed, 0, well]).uniform(0.6, 1.4, (channels, 1, 1))
        rng = np.random.default_rng([seed, 1, index])
        image = render_cells(rng, channels, size, well % kinds) * light + rng.normal(6, 5, (channels, size, size))
        file = f'images/{index:05d}.npy'
        np.save(out / file, image.clip(0, 255).astype(np.uint8))
        rows.append(dict(path=file, ID=f'{index:05d}', well_loc=names[well]))
    _write(out / 'plate.csv', rows)
    _write(out / 'platemap.csv', [dict(well_position=n, broad_sample=s) for n, s in zip(names, samples, strict=True)])
    targets = [
        dict(broad_sample=f'BRD-{t + 1:03d}-{copy}', target=name) for t, name in enumerate(TARGETS) for copy in range(2)
    ]
    _write(out / 'metadata.csv', [dict(broad_sample=CONTROL_SAMPLE, target=''), *targets])
    return wells


def _write(path: Path, rows: list[dict]) -> None:
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def make(out: Path, count: int, channels: int, size: int, seed: int, overwrite: bool) -> None:
    """Write `out / 'cells'`.

    Raises:
        FileExistsError: it is there and `overwrite` is not set.
    """
    out = out / 'cells'
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise FileExistsError(f'{out} is not empty; name another folder, or add --overwrite to replace its dataset')
        shutil.rmtree(out)
    wells = write_plate(out, count, channels, size, seed)
    print(f'{out}: {count} images of {channels} channels from {wells} wells, {len(TARGETS)} targets and a control')
    print(f'tables: {out / "plate.csv"}, {out / "platemap.csv"}, {out / "metadata.csv"}')
