"""Let torchvision be imported beside a PyTorch without CUDA whose torchvision was built for CUDA.

mmpretrain needs torchvision, and mmdet and mmseg import it where it is installed. The package index's torchvision for
Linux is built for CUDA; beside a PyTorch for CPUs its library cannot be loaded, and then its Python part fails at
import (`operator torchvision::nms does not exist`), as it describes operators to PyTorch that the library should have
defined. Defining their schemas is enough for everything but torchvision's own box operators, which nothing here uses:
mmcv brings its own. With a torchvision that fits (PyTorch's CPU index has one), or with CUDA, nothing is done.
"""

import functools
from importlib.util import find_spec
from pathlib import Path

import torch

_SCHEMA = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'


@functools.cache
def define_missing_operators() -> bool:
    """Define the two schemas that torchvision's import asks for, if its library cannot be loaded here.

    To be called before the first import of torchvision, mmpretrain, mmdet or mmseg; importing `mmvmamba.registry` does.

    Returns:
        Whether they were missing.
    """
    if torch.version.cuda or torch.version.hip:
        return False
    spec = find_spec('torchvision')
    if spec is None or spec.origin is None:
        return False
    for library in Path(spec.origin).parent.glob('_C*.so'):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            break  # built for CUDA
    else:
        return False
    for name in ('nms', 'qnms'):
        if not hasattr(torch.ops.torchvision, name):  # set-up's finder, which `find_spec` asks, may have been here
            torch.library.define(f'torchvision::{name}', _SCHEMA)
    return True
