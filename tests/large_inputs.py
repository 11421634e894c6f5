"""Inputs of the scans that all but fill float16."""

import torch
from mmvmamba.kernels import selective_scan, ss2d, ss2d_norm
from mmvmamba.kernels.testing import pooled_scan_by_name, pooled_scan_inputs, scan_inputs, ss2d_inputs

SCALE = 1e4
"""Float16 ends at 65504."""


def norm_inputs(**options):
    arguments = ss2d_inputs(**options)
    x = arguments['x']
    parameter = x.new_ones(x.shape[3], dtype=torch.float32)
    return dict(arguments, norm_weight=parameter, norm_bias=0 * parameter)


CASES = {
    'selective_scan': (selective_scan, scan_inputs, ('u', 'delta', 'Bs', 'Cs')),
    'ss2d': (ss2d, ss2d_inputs, ('x',)),
    'ss2d_norm': (ss2d_norm, norm_inputs, ('x',)),
    'pooled_scan': (pooled_scan_by_name, pooled_scan_inputs, ('xz',)),
}


def large(inputs, scaled, dtype, device='cpu'):
    """Random arguments, some of them scaled and then kept within what the dtype can hold."""
    arguments = inputs(dtype=dtype, device=device)
    top = torch.finfo(torch.float16).max
    for name in scaled:
        t = arguments[name].float()
        # a gate is a factor of the result itself, which must fit float16
        channels = t.shape[-1] // 2 if name == 'xz' else t.shape[-1]
        t[..., :channels] = (t[..., :channels] * SCALE).clamp(-top, top)
        arguments[name] = t.to(dtype)
    return arguments
