"""Published and own checkpoints into our models: read safely, translated by name, fitted strictly.

`load` is the door. What it understands is listed there; anything else that does not fit is an exception that lists
names and shapes and says whose weights they look like. This package knows no backbone: importing `mmvmamba.models`
registers each family with the names of its published files.
"""

from . import download, scheme
from .download import WeightsUnavailable
from .fitting import Report, fit, fit_part, load, recognise
from .published import find, published
from .reading import RESOLVERS, CheckpointError, class_names, guard, locate, read, read_file
from .translating import Family, architecture, as_classifier, register

__all__ = [
    'CheckpointError',
    'Family',
    'Report',
    'WeightsUnavailable',
    'architecture',
    'as_classifier',
    'class_names',
    'find',
    'fit',
    'fit_part',
    'guard',
    'load',
    'locate',
    'published',
    'read',
    'read_file',
    'recognise',
    'register',
]

RESOLVERS.update(dict.fromkeys(('mmvmamba', 'http', 'https'), download.fetch))
scheme.register()
