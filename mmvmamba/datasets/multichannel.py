"""Classification sets of images with many channels: JUMP-CP's plates as published, and plain folders.

Source of the labels and of the split by images: the training code of Kapse et al., arXiv 2502.00594.
"""

import csv
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset

from mmvmamba.registry import DATASETS

from .report import DataError

SPLITS = ('train', 'val', 'test')
SPLIT_BY = ('image', 'well')
_SHARES = (0.6, 0.8)  # where validation and test begin
_SUFFIXES = ('.npy', '.tif', '.tiff')
CONTROL = 'negative control'


def read_table(path: str | Path) -> list[dict]:
    """Read a table: parquet (whatever its name: JUMP-CP's are called .tsv), CSV, or tab-separated text.

    Returns:
        Rows by column name; what is missing is None.

    Raises:
        DataError: no such file; a parquet file where pandas or pyarrow are missing; with the path.
    """
    path = Path(path)
    try:
        with path.open('rb') as file:
            parquet = file.read(4) == b'PAR1'
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from error
    if parquet:
        try:
            import pandas

            table = pandas.read_parquet(path)
        except ImportError as error:
            raise DataError(
                f'{path} is a parquet table, which needs pandas and pyarrow ({error}); pip install pandas pyarrow, or '
                f'convert it to CSV'
            ) from error
        return [{k: None if pandas.isna(v) else v for k, v in row.items()} for row in table.to_dict('records')]
    text = path.read_text(encoding='utf-8-sig').splitlines()
    delimiter = '\t' if text and '\t' in text[0] else ','
    return [{k: v or None for k, v in row.items()} for row in csv.DictReader(text, delimiter=delimiter)]


def _column(rows: list[dict], name: str, path) -> list:
    if rows and name not in rows[0]:
        raise DataError(f'{path}: no column {name!r}; it has {list(rows[0])}')
    return [row[name] for row in rows]


def well_labels(plate_map, metadata, column: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Labels of a plate's wells.

    Args:
        plate_map: table with `well_position` and `broad_sample`.
        metadata: table with `broad_sample` and the column of the targets.
        column: 'target', or 'gene' for crispr and orf.

    Returns:
        Well to label: 0 for wells without a target, the negative control, else 1 and on in the order in which targets
        first appear in the plate map; and the names of all labels.
    """
    plates, samples = read_table(plate_map), read_table(metadata)
    targets = dict(zip(_column(samples, 'broad_sample', metadata), _column(samples, column, metadata), strict=True))
    names, labels = [], {}
    wells, samples = _column(plates, 'well_position', plate_map), _column(plates, 'broad_sample', plate_map)
    for well, sample in zip(wells, samples, strict=True):
        target = targets.get(sample)
        if target is not None and target not in names:
            names.append(target)
        labels[well] = 0 if target is None else 1 + names.index(target)
    return labels, (CONTROL, *names)


@DATASETS.register_module()
class JumpCPDataset(BaseDataset):
    """Images of cells on plates, labelled by the compound or gene that perturbed them.

    Args:
        tables: one table a plate, or a list of them: `path` of an `.npy` file `(C, H, W)`, `ID`, `well_loc` ('A01').
        plate_map, metadata: see `well_labels`.
        target: column of the targets: 'target' for compounds, 'gene' for crispr and orf.
        split: 'train', 'val', 'test' (60, 20 and 20 %), or None for all.
        split_by: 'image', as published: images of one well fall on both sides, and what is learnt of a well helps to
            recognise it. 'well': no well is on two sides; every class deals its own wells out (a class of one well is
            trained only).
        seed: of the split; 0 is the published one.
        data_root: of relative paths, of the tables' as of the images'.
        **arguments: of mmengine's `BaseDataset`.

    Raises:
        DataError: a table that cannot be read, a missing column, wells without a label.

    Source: Chandrasekaran et al., "Three million images and morphological profiles of cells treated with matched
    chemical and genetic perturbations" (JUMP-CP).
    """

    def __init__(
        self,
        tables,
        plate_map,
        metadata,
        target='target',
        split='train',
        split_by='image',
        seed=0,
        data_root='',
        **arguments,
    ):
        if split not in (*SPLITS, None):
            raise ValueError(f'JumpCPDataset: split={split!r} is unknown; expected one of {(*SPLITS, None)}')
        if split_by not in SPLIT_BY:
            raise ValueError(f'JumpCPDataset: split_by={split_by!r} is unknown; expected one of {SPLIT_BY}')
        root = Path(data_root or '.')
        self.tables = [root / table for table in ([tables] if isinstance(tables, (str, Path)) else tables)]
        self.split, self.split_by, self.split_seed = split, split_by, seed
        self.labels, names = well_labels(root / plate_map, root / metadata, target)
        super().__init__(data_root=str(root), metainfo=dict(classes=names), **arguments)

    def load_data_list(self) -> list[dict]:
        """All samples of the split: `img_path`, `gt_label`, `well`, `sample_id`."""
        samples, strangers = [], []
        for table in self.tables:
            rows = read_table(table)
            paths, wells = _column(rows, 'path', table), _column(rows, 'well_loc', table)
            for row, path, well in zip(rows, paths, wells, strict=True):
                if well not in self.labels:
                    strangers.append(f'{table}: {well}')
                    continue
                place = str(Path(self.data_root) / str(path))
                samples.append(
                    dict(img_path=place, gt_label=self.labels[well], well=(str(table), well), sample_id=row.get('ID'))
                )
        if strangers:
            raise DataError(
                f'{len(strangers)} images lie in wells that the plate map does not have, such as {strangers[:5]}; '
                f'remove their rows or give the plate map of this plate'
            )
        if self.split is None or not samples:
            return samples
        sides = self._by_image(len(samples)) if self.split_by == 'image' else self._by_well(samples)
        return [sample for sample, side in zip(samples, sides, strict=True) if SPLITS[side] == self.split]

    def _by_image(self, count: int) -> np.ndarray:
        """A side for every image, by a permutation of all."""
        order = np.random.RandomState(self.split_seed).permutation(count)
        sides = np.empty(count, int)
        for side, part in enumerate(np.split(order, [int(share * count) for share in _SHARES])):
            sides[part] = side
        return sides

    def _by_well(self, samples: list[dict]) -> list[int]:
        """A side for every image, the same for all of a well."""
        random = np.random.RandomState(self.split_seed)
        side = {}
        for label in range(len(self.metainfo['classes'])):
            wells = sorted({sample['well'] for sample in samples if sample['gt_label'] == label})
            for place, i in enumerate(random.permutation(len(wells))):
                side[wells[i]] = sum((place + 0.5) / len(wells) >= share for share in _SHARES)
        return [side[sample['well']] for sample in samples]


@DATASETS.register_module()
class MultiChannelFolder(BaseDataset):
    """A folder for each class with images of any number of channels: `.npy`, or TIFF with a page for each.

    Args:
        data_root: the folder of the classes' folders.
        classes: their names, in the order of the labels; None: all folders, sorted.
        **arguments: of mmengine's `BaseDataset`.

    Raises:
        DataError: no folder, or no images in it.
    """

    def __init__(self, data_root, classes=None, **arguments):
        root = Path(data_root)
        if classes is None:
            classes = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        if not classes:
            raise DataError(f'{root}: no folder with a folder for each class')
        super().__init__(data_root=str(root), metainfo=dict(classes=tuple(classes)), **arguments)

    def load_data_list(self) -> list[dict]:
        """All samples: `img_path`, `gt_label`."""
        samples = []
        for label, name in enumerate(self.metainfo['classes']):
            folder = Path(self.data_root) / name
            paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in _SUFFIXES)
            if not paths:
                raise DataError(f'{folder}: no image with one of the endings {_SUFFIXES}')
            samples += [dict(img_path=str(path), gt_label=label) for path in paths]
        return samples
