"""Any size of image through one graph: compiled, exported, traced; every route pattern and way of pooling."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch.export import Dim, export

from mmvmamba.models import FastVim, VMamba

_VMAMBA = dict(embed_dims=8, depths=(1, 1, 1, 1), out_indices=(0,), drop_path_rate=0.0)
_FASTVIM = dict(embed_dims=16, depth=2, d_state=4, out_indices=(0,), drop_path_rate=0.0, img_size=(96, 64))

CASES = {
    'cross': (VMamba, dict(_VMAMBA, out_indices=(0, 1))),
    'unidi': (VMamba, dict(_VMAMBA, routes='unidi')),
    'bidi': (VMamba, dict(_VMAMBA, routes='bidi', conv_size=0)),
    'cascade': (VMamba, dict(_VMAMBA, routes='cascade', with_cp=True, frozen_stages=0)),
    'v0': (VMamba, dict(_VMAMBA, arch='tiny_v0', out_indices=(1,))),
    'v0_cascade': (VMamba, dict(_VMAMBA, arch='tiny_v0', routes='cascade')),
    'mean': (FastVim, dict(_FASTVIM, out_indices=(0, 1), with_cp=True)),
    'max': (FastVim, dict(_FASTVIM, pool='max', scan_path='column')),
    'vim': (FastVim, dict(_FASTVIM, pool=None, norm='RMS', frozen_stages=0)),
    'no_rotate': (FastVim, dict(_FASTVIM, rotate=False, norm_after_scan=False)),
}
SIZES = ((2, 64, 80), (3, 71, 90), (4, 96, 64), (5, 100, 37))
"""Batch, height and width. The first two differ in all of them; even and odd; FastVim's own grid comes late."""

follows_sizes = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split('.')[:2]) < (2, 11),
    reason='PyTorch 2.4 has its exporter fix these sizes, and counts graphs otherwise; 2.5 to 2.10 were not tried',
)
all_cases = pytest.mark.parametrize('name', CASES)
pytestmark = pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')


def build(name, **options):
    backbone, arguments = CASES[name]
    return backbone(**arguments, **options)


def gradients_of(model, run, image):
    model.zero_grad(set_to_none=True)
    outs = run(image)
    sum((out * out.detach().cos()).sum() for out in outs).backward()
    return outs, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(outs, expected):
    for out, other in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, other, rtol=1e-5, atol=1e-5)


@pytest.fixture
def compiled():
    """Compile a model as one graph; fails afterwards if sizes took more graphs than they may."""
    torch._dynamo.reset()
    counters.clear()
    allowed = []

    def compile(model, dynamic=None, backend='aot_eager'):
        allowed.append(1 if dynamic else 2)  # first a static one
        return torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)

    yield compile
    assert counters['stats']['unique_graphs'] <= allowed[0]
    torch._dynamo.reset()


@follows_sizes
@pytest.mark.parametrize('name', ['v0', 'cascade', 'mean'])
def test_training_takes_one_graph(name, compiled):
    model = build(name)
    run = compiled(model)
    for batch, *size in SIZES:
        image = torch.randn(batch, 3, *size)
        outs, grads = gradients_of(model, run, image)
        expected, expected_grads = gradients_of(model, model, image)
        assert_equal(outs, expected)
        assert grads.keys() == expected_grads.keys()
        for key, grad in grads.items():
            torch.testing.assert_close(grad, expected_grads[key], rtol=1e-4, atol=1e-4)


@follows_sizes
@pytest.mark.parametrize('name, backend', [('v0', 'aot_eager'), ('mean', 'aot_eager'), ('vim', 'inductor')])
def test_evaluation_takes_one_graph(name, backend, compiled):
    model = build(name).eval()
    run = compiled(model, dynamic=True, backend=backend)
    with torch.no_grad():
        for batch, *size in SIZES:
            image = torch.randn(batch, 3, *size)
            assert_equal(run(image), model(image))


def exported(model, size, smallest, strict=False):
    dynamic = {0: Dim('batch'), 2: Dim('height', min=smallest), 3: Dim('width', min=smallest)}
    return export(model, (torch.randn(2, 3, *size),), dynamic_shapes=(dynamic,), strict=strict).module()


SMALLEST = {VMamba: 12, FastVim: 17}
"""From here on no map is one pixel wide: PyTorch compiles that size apart, for any network of convolutions."""


@follows_sizes
@all_cases
def test_exported_program_takes_all_sizes(name):
    model = build(name).eval()
    program = exported(model, (96, 64), SMALLEST[type(model)])
    for size in ((2, 96, 64), (1, 71, 90), (5, 100, 37), (20, 33, 34)):
        image = torch.randn(size[0], 3, *size[1:])
        assert_equal(program(image), model(image))


@follows_sizes
@pytest.mark.parametrize('name', ['cascade', 'mean'])
def test_strict_export_from_odd_sizes(name):
    model = build(name).eval()
    program = exported(model, (71, 90), SMALLEST[type(model)], strict=True)
    for size in ((2, 96, 64), (1, 33, 129)):
        image = torch.randn(size[0], 3, *size[1:])
        assert_equal(program(image), model(image))


@pytest.mark.parametrize(
    'name, grad', [*((name, True) for name in CASES), ('cross', False), ('v0', False), ('mean', False)]
)
def test_trace_takes_all_sizes(name, grad):
    model = build(name).eval()
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, torch.randn(2, 3, 96, 64))
        for batch, *size in (*SIZES, (1, 17, 33), (1, 320, 480)):  # the last is large enough for all that is cut up
            image = torch.randn(batch, 3, *size)
            assert_equal(traced(image), model(image))
