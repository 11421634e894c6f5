"""Selective scans over sequences and grids, forward and backward, in several backends.

Knows tensors only. Importing it needs torch alone; a backend's own packages are imported when it first runs.
"""

from .depthwise_conv.op import depthwise_conv_silu
from .dispatch import BACKENDS, BackendUnavailableError, availability
from .pooled_scan.op import Direction, pooled_scan, pooled_scan_kept
from .selective_scan.op import selective_scan
from .ss2d.norm import ss2d_norm
from .ss2d.op import ss2d

__all__ = [
    'BACKENDS',
    'BackendUnavailableError',
    'Direction',
    'availability',
    'depthwise_conv_silu',
    'pooled_scan',
    'pooled_scan_kept',
    'selective_scan',
    'ss2d',
    'ss2d_norm',
]
