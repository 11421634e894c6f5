"""What of the Triton backends needs no kernel to run: the machine code, and how often it would be compiled.

`triton*_cases.py` run the kernels, see `tests/interpreter.py`.
"""

import ast
import random
import re

import pytest
import torch
from mmvmamba.kernels.testing import pooled_scan_inputs, ss2d_inputs
from tool_runs import ROOT, load_tool
from triton_runs import OLDEST_TRITON

triton = pytest.importorskip('triton', minversion=OLDEST_TRITON)

PINNED = re.search(r'^triton==(\S+)', (ROOT / 'tools/constraints.txt').read_text(), re.MULTILINE)[1]


@pytest.fixture(scope='module')
def aot_report():
    """The tool that compiles kernels without a GPU."""
    return load_tool('aot_report')


def test_no_size_of_an_image_is_compiled_in(aot_report):
    """Detection changes H and W in every batch: whatever depends on them must be an argument like any other."""
    sizes = {'B', 'L', 'H', 'W', 'T', 'chunks', 'rows', 'share', 'lines', 'size', 'step', 'line_step'}
    sizes |= {'group', 'group_step'}
    groups = aot_report.shapes(('tiny_s1l8', 'fastvim_tiny', 'fastchannelvim_small'))
    for variant in (v for group, shape in groups for v in aot_report.GROUPS[group](*shape, 'fp32', 'sm_90')):
        compiled_in = {p.name for p in variant.kernel.params if p.is_constexpr}
        free = {p.name for p in variant.kernel.params if p.do_not_specialize}
        numbers = {name for name in variant.types if not name.startswith('p_')}
        assert compiled_in.isdisjoint(sizes)
        assert numbers <= free | {'eps', 'scale'}


@pytest.mark.parametrize('room', sorted(path.parent.name for path in (ROOT / 'kernels').glob('*/__init__.py')))
def test_kernels_stay_small(room):
    """Eighty lines and twenty run-time parameters, of which what is compiled in as a `Spec` is one."""
    for path in (ROOT / 'kernels' / room).glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and 'triton.jit' in map(_decorator, node.decorator_list):
                assert node.end_lineno - node.lineno < 80, f'{path.name}: {node.name}'
                given = [
                    a for a in node.args.args if a.annotation is None or 'constexpr' not in ast.unparse(a.annotation)
                ]
                assert len(given) <= 20, f'{path.name}: {node.name}'


def _decorator(node) -> str:
    return ast.unparse(node.func if isinstance(node, ast.Call) else node)


@pytest.mark.parametrize(
    ('group', 'sizes', 'name'),
    [
        *(('ss2d', (96, 1, 6), f'forward {kind}') for kind in ('one pass', 'chunk_state')),
        *(('ss2d', (96, 1, 6), f'backward {kind}') for kind in ('tile_state', 'one pass')),
        *(('around ss2d', (96,), name) for name in ('norm with sum', 'norm backward', 'convolution', 'convolution dz')),
        *(('around short scan', (384,), f'pool mean{back}') for back in ('', ' backward')),
        *(('around short scan', (384,), f'gate of long lines{back}') for back in ('', ' backward')),
        ('around short scan of planes', (768,), 'gate of lines of inner planes backward'),
        # what Triton 3.6 refused and later ones take: a product with a `cdiv`, and None in a tuple that is returned
        *(('ss2d', (96, 1, 6), name) for name in ('state_passing', 'reverse_state_passing')),
        *(('around short scan', (384,), f'gate of {tokens} without norm') for tokens in ('long lines', 'all tokens')),
        ('short scan', (384, 16, 12), 'backward one pass'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_compiles_for_a_gpu(group, sizes, name, aot_report):
    """The compiler refuses some of what the interpreter runs."""
    dtype = 'fp32' if group == 'short scan' else 'bf16'  # short sequences are float32 whatever the tokens are
    variants = {v.name: v for v in aot_report.GROUPS[group](*sizes, dtype, 'sm_90')}
    row = aot_report.measure(variants[name], 'sm_90')
    assert row['registers'] > 16
    if triton.__version__ == PINNED:  # what spills depends on the compiler
        assert row['spilled'] == 0
    if name.startswith('forward'):
        assert row['specials'] <= 3  # 2 + N


@pytest.mark.parametrize('target', ['sm_100', 'sm_120'])
@pytest.mark.parametrize('name', ['forward one pass', 'backward one pass'])
def test_compiles_for_blackwell(name, target, aot_report):
    variants = {v.name: v for v in aot_report.GROUPS['ss2d'](96, 1, 6, 'bf16', target)}
    row = aot_report.measure(variants[name], target)
    assert row['registers'] > 16
    assert row['spilled'] == 0 or triton.__version__ != PINNED


@pytest.fixture
def launches(monkeypatch):
    """Keys under which Triton would look for a compiled kernel on an H200, as a set that launches fill; none runs."""
    from mmvmamba.kernels.pooled_scan import triton_gate
    from mmvmamba.kernels.shared_triton import numerics, scan
    from mmvmamba.kernels.ss2d import triton_norm
    from triton.backends.compiler import GPUTarget

    class Driver:
        """What of a driver is asked for before a kernel starts."""

        def get_current_device(self):
            return 'nowhere'

        def get_current_stream(self, device):
            return 0

        def get_current_target(self):
            return GPUTarget('cuda', 90, 32)

    monkeypatch.setattr(triton.runtime.driver, '_active', Driver())
    for module in (numerics, scan, triton_norm, triton_gate):
        monkeypatch.setattr(module, 'multiprocessors', lambda device: 132)
    keys = set()

    def note(*, key, fn, **others):
        keys.add((fn.name, key))
        return True  # says that somebody else has compiled it: no kernel comes back and none is started

    monkeypatch.setattr(triton.knobs.runtime, 'jit_cache_hook', note)
    return keys


def test_another_size_of_image_compiles_nothing_new(launches):
    """Fifty random sizes, after one long and one short walk of either kind of line."""
    from mmvmamba.kernels.depthwise_conv import triton_conv
    from mmvmamba.kernels.ss2d import triton_scan

    def step(height, width):
        scan = ss2d_inputs(1, height, width, 16, rank=1, dtype=torch.bfloat16)
        x = scan['x']
        weight, norm = torch.ones(16, 1, 3, 3), [torch.ones(16), torch.zeros(16), None]
        triton_conv.forward(x, weight, None)
        triton_conv.backward(x, x, weight, None)
        _, total = triton_scan.forward_norm(*scan.values(), *norm, 1e-5, 'cross', trains=True)
        triton_scan.backward_norm(x, total, *scan.values(), *norm, 1e-5, 'cross')

    for size in ((3, 5), (5, 300), (300, 5), (200, 300)):
        step(*size)
    known = set(launches)
    kernels = {name for name, _ in known}
    assert {name.rsplit('.')[-1] for name in kernels} >= {
        *('chunk_state', 'state_passing', 'chunk_scan', '_conv_silu_fwd'),
        *('tile_state', 'chunk_state_bwd', 'reverse_state_passing', 'chunk_scan_bwd'),
    }
    assert len(known) <= 4 * len(kernels)
    sizes = random.Random(0)
    for _ in range(50):
        step(sizes.randint(1, 300), sizes.randint(1, 300))
    assert launches == known


def test_another_grid_compiles_nothing_new_for_the_pooled_scan(launches):
    """Nor does the other axis: both are the same kernels."""
    from mmvmamba.kernels.pooled_scan import triton_scan

    def step(batch, height, width, axis, number=(), planes='inner'):
        arguments = pooled_scan_inputs(batch, height, width, 24, dtype=torch.bfloat16, planes=number)
        xz, *tensors, weight, bias = arguments.values()
        half = len(tensors) // 2
        directions = tensors[:half], tensors[half:]
        for pool in ('mean', 'max'):
            triton_scan.forward(xz, directions, weight, bias, axis, pool, 1.0, 1e-5, planes)
            triton_scan.backward(xz[..., :24], xz, directions, weight, bias, axis, pool, 1.0, 1e-5, planes)

    for size in ((1, 3, 5), (1, 300, 5), (3, 5, 300), (40, 100, 16)):  # short and long walks, few and many programs
        step(*size, 'row')
        for planes in ('inner', 'outer'):
            step(*size, 'row', (5,), planes)
    known = set(launches)
    kernels = {name.rsplit('.')[-1] for name, _ in known}
    assert kernels >= {'_pool_fwd', '_pool_bwd', '_gate_fwd', '_gate_moments', '_gate_bwd'}
    assert kernels >= {'chunk_scan', 'chunk_scan_bwd', '_pool_planes_fwd', '_gate_planes_bwd'}
    sizes = random.Random(0)
    for i in range(25):
        step(sizes.randint(1, 4), sizes.randint(1, 150), sizes.randint(1, 150), ('row', 'column')[i % 2])
        if i % 4 == 0:
            step(2, *(sizes.randint(1, 70) for _ in range(2)), 'column', (5 + i,), ('inner', 'outer')[i // 4 % 2])
    assert launches == known
