"""Selective scans over sequences and grids, forward and backward, in several backends.

Knows tensors only. Importing it needs torch alone; a backend's own packages are imported when it first runs.
"""

from .dispatch import BACKENDS, BackendUnavailableError, availability
from .selective_scan.op import selective_scan
from .ss2d.op import ss2d

__all__ = ['BACKENDS', 'BackendUnavailableError', 'availability', 'selective_scan', 'ss2d']
