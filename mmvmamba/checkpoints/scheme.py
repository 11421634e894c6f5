"""mmengine's loader learns `mmvmamba://NAME`, and that the published addresses are read by us, not unpickled."""

import re
import sys

from mmengine.runner.checkpoint import CheckpointLoader

from .download import fetch
from .published import SCHEME, find, published
from .reading import open_source, parameters
from .translating import clean

# training data of the metafile to the toolbox, and its dataset, that know the classes
_CLASSES = {'COCO 2017': ('mmdet', 'CocoDataset'), 'ADE20K': ('mmseg', 'ADE20KDataset')}


def register() -> None:
    """Register with mmengine: our scheme, and every address of the metafile, which inferencers take from there."""
    addresses = [re.escape(entry.address) for entry in published().values()]
    CheckpointLoader.register_scheme([SCHEME, *addresses], load_from_mmvmamba, force=True)


def load_from_mmvmamba(filename: str, map_location=None) -> dict:
    """Published weights as mmengine wants a checkpoint: `state_dict` under our names, and `meta`.

    Args:
        filename: `mmvmamba://NAME`, or an address of the metafile.
        map_location: device of the tensors; None leaves them on the CPU.

    Raises:
        FileNotFoundError, CheckpointError: see `checkpoints.read_file` and `checkpoints.download`.
    """
    content = open_source(fetch(filename), trust=False)
    state_dict = clean(parameters(content, filename)[1])
    if map_location is not None:
        state_dict = {name: value.to(map_location) for name, value in state_dict.items()}
    meta = dict(content.get('meta') or {})
    if not {'dataset_meta', 'CLASSES'} & meta.keys():
        meta |= _dataset_meta(find(filename).dataset)
    return dict(meta=meta, state_dict=state_dict)


def _dataset_meta(dataset: str) -> dict:
    """Classes and colours of a data set, for files without them, if its toolbox is in use here."""
    toolbox, name = _CLASSES.get(dataset, ('', ''))
    if toolbox not in sys.modules:
        return {}
    registry = sys.modules[toolbox].registry.DATASETS
    return dict(dataset_meta=dict(registry.get(name).METAINFO))
