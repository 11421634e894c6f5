"""Operators in the form in which they are exported: against the reference, in PyTorch and in onnxruntime."""

import numpy as np
import pytest
import torch
from mmvmamba.kernels import dispatch, selective_scan, ss2d, ss2d_norm
from mmvmamba.kernels.pooled_scan.op import AXES, POOLS
from mmvmamba.kernels.ss2d.routes import PATTERNS
from mmvmamba.kernels.testing import (
    TOLERANCE,
    assert_close,
    pooled_scan_by_name,
    pooled_scan_inputs,
    scan_inputs,
    ss2d_inputs,
)

from mmvmamba.deploy.exporting import OLDEST_TORCH
from mmvmamba.deploy.operators import DOMAIN, Functions

pytest.importorskip('torch', minversion='.'.join(map(str, OLDEST_TORCH)))

SIZES = [(5, 7), (1, 9), (9, 1), (1, 1)]


def check(function, arguments, tolerance=TOLERANCE[torch.float32], **options):
    expected = function(**arguments, backend='reference', **options)
    # whatever backend is asked for: one of a config must not reach the graph
    with dispatch.exporting(), torch.no_grad():
        actual = function(**arguments, backend='reference', **options)
    assert_close('y', actual, expected, tolerance)


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('states', [1, 3])
@pytest.mark.parametrize('routes', PATTERNS)
def test_ss2d(routes, states, size):
    check(ss2d, ss2d_inputs(height=size[0], width=size[1], states=states), routes=routes)


@pytest.mark.parametrize('length', [1, 2, 33, 36, 37])
@pytest.mark.parametrize('states', [1, 3])
@pytest.mark.parametrize('softplus', [True, False])
def test_selective_scan(softplus, states, length):
    arguments = scan_inputs(states=states, length=length)
    if not softplus:
        arguments['delta'] = arguments['delta'].abs() * 0.1
        arguments['delta_bias'] = None
    check(selective_scan, arguments, softplus=softplus)


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('pool', POOLS)
@pytest.mark.parametrize('axis', AXES)
def test_pooled_scan(axis, pool, size):
    for states in (1, 2):
        arguments = pooled_scan_inputs(height=size[0], width=size[1], states=states)
        check(pooled_scan_by_name, arguments, axis=axis, pool=pool)


def test_long_sequences_neither_overflow_nor_lose_their_start():
    """Decays over 250,000 positions underflow to 0, and where nothing decays the first position reaches the last."""
    arguments = ss2d_inputs(batch=1, height=500, width=500, channels=2)
    with dispatch.exporting(), torch.no_grad():
        assert ss2d(**arguments).isfinite().all()
        length = 10_000
        u = torch.zeros(1, 1, length)
        u[..., 0] = 1
        ones = torch.ones(1, 1, length)
        y = selective_scan(u, ones, torch.full((1, 1), -1e-9), ones, ones, softplus=False)
    torch.testing.assert_close(y, torch.ones_like(y), atol=1e-4, rtol=0)


class _Model(torch.nn.Module):
    """The scans of VMamba on one grid, both patterns of routes; the rest and FastVim's are in `test_exporting`."""

    def __init__(self, states=2):
        super().__init__()
        self.grid = {k: v for k, v in ss2d_inputs(states=states).items() if k != 'x'}
        self.sequence = {k: v for k, v in scan_inputs(groups=1, channels=16, states=states).items() if k in ('A', 'Ds')}

    def forward(self, x):
        y = ss2d_norm(x, **self.grid, norm_weight=torch.ones(8), norm_bias=torch.zeros(8), gate=x)
        y = torch.cat([y, ss2d(y, **self.grid, routes='cascade')], dim=3)
        walk = y.flatten(1, 2).mT
        states = self.sequence['A'].shape[1]
        return selective_scan(walk, walk, Bs=walk[:, :states], Cs=walk[:, 1 : states + 1], **self.sequence)


def test_in_onnxruntime(tmp_path):
    """One file; sizes other than the traced one, single rows and columns too."""
    onnxruntime = pytest.importorskip('onnxruntime')
    model, functions, auto = _Model(), Functions(20), torch.export.Dim.AUTO
    with torch.no_grad(), dispatch.exporting(opaque=True):
        program = torch.export.export(
            model, (torch.zeros(3, 4, 6, 8),), dynamic_shapes=({0: auto, 1: auto, 2: auto},), strict=False
        )
    with torch.no_grad():
        exported = torch.onnx.export(program, custom_translation_table=functions.table(), opset_version=20)
    functions.add_to(exported.model)
    assert DOMAIN not in {node.domain for node in exported.model.graph.all_nodes()}
    assert not exported.model.functions
    exported.save(tmp_path / 'model.onnx')
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    for shape in ((3, 4, 6), (1, 5, 7), (2, 1, 11), (1, 13, 1), (1, 1, 1)):
        x = torch.randn(*shape, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = model(x)
        (actual,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert_close(str(shape), torch.from_numpy(np.array(actual)), expected, 1e-5)
