"""Published and own checkpoints into our models: read safely, translated by name, fitted strictly.

`load` is the door. What it understands is listed there; anything else that does not fit is an exception that lists
names and shapes and says whose weights they look like. This package knows no backbone: importing `mmvmamba.models`
registers each family with the names of its published files.
"""

from .fitting import Report, fit, fit_part, load, recognise
from .reading import CheckpointError, guard, read, read_file
from .translating import Family, architecture, register

__all__ = [
    'CheckpointError',
    'Family',
    'Report',
    'architecture',
    'fit',
    'fit_part',
    'guard',
    'load',
    'read',
    'read_file',
    'recognise',
    'register',
]
