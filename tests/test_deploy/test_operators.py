"""Operators in the form in which they are exported: against the reference, in PyTorch and in onnxruntime."""

import numpy as np
import pytest
import torch
from mmvmamba.deploy.operators import DOMAIN, Functions
from mmvmamba.kernels import dispatch, pooled_scan, selective_scan, ss2d
from mmvmamba.kernels.ss2d.routes import PATTERNS
from mmvmamba.kernels.testing import (
    TOLERANCE,
    assert_close,
    pooled_scan_by_name,
    pooled_scan_inputs,
    scan_inputs,
    ss2d_inputs,
)

onnxruntime = pytest.importorskip('onnxruntime')


def decomposed(function, arguments, **options):
    with dispatch.exporting(), torch.no_grad():
        return function(**arguments, **options)


@pytest.mark.parametrize('states', [1, 3])
@pytest.mark.parametrize('routes', PATTERNS)
@pytest.mark.parametrize('size', [(5, 7), (1, 9), (9, 1), (1, 1)], ids=str)
def test_ss2d_decomposed(states, routes, size):
    arguments = ss2d_inputs(height=size[0], width=size[1], states=states)
    expected = ss2d(**arguments, routes=routes, backend='reference')
    assert_close('y', decomposed(ss2d, arguments, routes=routes), expected, TOLERANCE[torch.float32])
