"""mmengine's loader learns `mmvmamba://NAME`, and that the published addresses are read by us, not unpickled."""

import importlib
import re
import sys

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from .fitting import fit
from .published import HOME, SCHEME, find, published
from .reading import parameters, read_file

# training data of the metafile to the toolbox, and its dataset, that know the classes
_CLASSES = {
    'COCO 2017': ('mmdet', 'CocoDataset'),
    'ADE20K': ('mmseg', 'ADE20KDataset'),
    'ImageNet-1K': ('mmpretrain', 'ImageNet'),
}


def register() -> None:
    """Register with mmengine: our scheme, and every address of the metafile, which inferencers take from there."""
    addresses = [re.escape(entry.address) for entry in published().values()]
    CheckpointLoader.register_scheme([SCHEME, *addresses], load_from_mmvmamba, force=True)


def load_from_mmvmamba(filename: str, map_location=None) -> dict:
    """Published weights as mmengine wants a checkpoint: `state_dict`, and `meta` with the classes.

    Our backbones translate what they are given. An address comes out of the metafile, from an inferencer that builds
    the config of the same row: what mmengine would load loosely must then fit that config, heads included.

    Args:
        filename: `mmvmamba://NAME`, or an address of the metafile.
        map_location: device of the tensors; None leaves them on the CPU.

    Raises:
        FileNotFoundError, CheckpointError: see `checkpoints.read_file` and `checkpoints.fit`.
    """
    entry, content = find(filename), read_file(filename)
    state_dict = parameters(content, filename).state_dict
    if entry.config and not filename.startswith(SCHEME):
        state_dict, _ = fit(content, _model_of(entry.config), filename)
    if map_location is not None:
        state_dict = {name: value.to(map_location) for name, value in state_dict.items()}
    meta = dict(content.get('meta') or {})
    if not {'dataset_meta', 'CLASSES'} & meta.keys():
        meta |= _dataset_meta(entry.dataset)
    return dict(meta=meta, state_dict=state_dict)


def _model_of(config: str) -> nn.Module:
    """A config's model, without memory for its parameters."""
    cfg = Config.fromfile(HOME / config)
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def _dataset_meta(dataset: str) -> dict:
    """Classes and colours of a data set, for files without them, if its toolbox is in use here."""
    toolbox, name = _CLASSES.get(dataset, ('', ''))
    if toolbox not in sys.modules:
        return {}
    registry = importlib.import_module(f'{toolbox}.registry').DATASETS  # which the toolbox alone does not import
    return dict(dataset_meta=dict(registry.get(name).METAINFO))
