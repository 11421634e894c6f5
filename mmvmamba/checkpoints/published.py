"""Names of published weights, `mmvmamba://NAME`, and what the metafile beside the configs says of them."""

import difflib
import functools
import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlparse

from .reading import CheckpointError

SCHEME = 'mmvmamba://'
MIRROR = 'MMVMAMBA_MIRROR'
_HERE = Path(__file__).parents[1]
# where the folder `configs` lies: in an installed package, or, where a clone has no symbolic links, at its top
HOME = next((path for path in (_HERE / '.mim', _HERE.parent) if (path / 'configs/metafile.yml').is_file()), None)


class Published(NamedTuple):
    """A file of weights with an address.

    Attributes:
        name: what stands behind `mmvmamba://`; '' for an address that the metafile does not list.
        address: where its authors put it.
        kind: 'backbone', 'model' (a whole one), or '' for an address that the metafile does not list.
        config: for a whole model, the config that builds it, as a path from the folder of `configs`.
        dataset: what it was trained on, '' where the metafile does not say.
        remark: what somebody who cannot get the file should know.
    """

    name: str
    address: str
    kind: str = ''
    config: str = ''
    dataset: str = ''
    remark: str = ''

    @property
    def source(self) -> str:
        """As users write it."""
        return f'{SCHEME}{self.name}' if self.name else self.address

    @property
    def file(self) -> str:
        """The file's name, the last part of its address."""
        return unquote(urlparse(self.address).path).rpartition('/')[2]

    @property
    def url(self) -> str:
        """The address, or the file at the mirror that the environment names in its authors' place."""
        mirror = os.environ.get(MIRROR)
        return f'{mirror.rstrip("/")}/{self.file}' if mirror and self.name else self.address


@functools.cache
def published() -> dict[str, Published]:
    """Every name and its file, in the metafile's order; none if there is no metafile."""
    import yaml

    found = {}
    if HOME is None:
        return found
    text = (HOME / 'configs/metafile.yml').read_text(encoding='utf-8')
    content = yaml.load(text, getattr(yaml, 'CSafeLoader', yaml.SafeLoader))
    for section, kind in (('Backbones', 'backbone'), ('Models', 'model'), ('Further Models', 'model')):
        for row in content.get(section, []):
            if row['Weights']:
                dataset = row.get('Training Data') or row.get('Metadata', {}).get('Training Data', '')
                rest = (row.get('Config', '') if kind == 'model' else '', dataset, row.get('Remark', ''))
                found[row['Name']] = Published(row['Name'], row['Weights'], kind, *rest)
    return found


def find(source: str) -> Published:
    """The file that `mmvmamba://NAME` or an address means.

    Raises:
        CheckpointError: no such name; with the nearest ones.
    """
    if HOME is None and source.startswith(SCHEME):
        raise CheckpointError(f'{source}: names need configs/metafile.yml, which this installation of mmvmamba lacks')
    if not source.startswith(SCHEME):
        named = [entry for entry in published().values() if entry.address == source]
        # a classifier's file is listed as a backbone's and as a whole model's; the latter says more
        return max(named, key=lambda entry: bool(entry.config), default=Published('', source))
    name = source.removeprefix(SCHEME)
    if name not in published():
        near = difflib.get_close_matches(name, published(), 5, cutoff=0.5)
        shown = f'Nearest: {", ".join(near)}' if near else f'There are: {", ".join(published())}'
        raise CheckpointError(f'{source}: nobody publishes weights under this name. {shown}')
    return published()[name]
