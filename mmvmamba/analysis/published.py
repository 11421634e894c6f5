"""Figures of the papers, to be printed beside ours: never measured here, always named as theirs with their device."""

import json
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_suffix('.json')


class Table(NamedTuple):
    """A table of a paper.

    Attributes:
        source: paper and experiment.
        device: on which speeds were measured.
        batch: images at a time in these measurements.
        size: pixels a side, None where the rows say it.
        rows: its entries; a row has the keys that its table has.
    """

    source: str
    device: str
    batch: int | None
    size: int | None
    rows: list[dict]

    def row(self, **keys) -> dict:
        """The row with these values; an empty one if there is none."""
        return next((row for row in self.rows if all(row.get(key) == value for key, value in keys.items())), {})


def table(name: str) -> Table:
    """A table of `published.json`: 'models', 'resolution', 'routes', 'ssm_init' or 'fastvim'."""
    found = json.loads(FILE.read_text())[name]
    return Table(found['source'], found['device'], found.get('batch'), found.get('size'), found['rows'])


_SIZES = {'tiny': 'T', 'small': 'S', 'base': 'B'}


def model_name(backbone: dict) -> str | None:
    """How `published.json` calls the model of a backbone's config; None if it is none of the papers'."""
    changed = backbone.keys() - {
        'type',
        '_scope_',
        'arch',
        'out_indices',
        'drop_path_rate',
        'frozen_stages',
        'init_cfg',
        'backend',
        'with_cp',
    }
    kind = backbone.get('type')
    kind = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    if changed or kind.rpartition('.')[2] != 'VMamba':
        return None
    size, _, blocks = str(backbone.get('arch', 'tiny_s1l8')).partition('_')
    name = f'VMamba-{_SIZES.get(size, size)} {"vanilla" if blocks == "v0" else blocks}'
    return name if table('models').row(model=name) else None
