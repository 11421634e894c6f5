"""The Triton backends in Triton's interpreter, which must be switched on before Triton is imported: in a subprocess.

`triton_cases.py` holds the tests. On a machine with a GPU they run there as well: `python -m pytest triton_cases.py`.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('triton')


def test_in_the_interpreter():
    cases = Path(__file__).with_name('triton_cases.py')
    environment = dict(os.environ, TRITON_INTERPRET='1', OMP_NUM_THREADS='1')
    command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert ' passed' in done.stdout
    assert 'skipped' not in done.stdout, done.stdout[-2000:]


@pytest.fixture(scope='module')
def aot_report():
    """The tool that compiles kernels without a GPU."""
    path = Path(__file__).parents[2] / 'tools/aot_report.py'
    spec = importlib.util.spec_from_file_location('aot_report', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_size_of_an_image_is_compiled_in(aot_report):
    """Detection changes H and W in every batch: whatever depends on them must be an argument like any other."""
    for variant in aot_report.variants(96, 1, 6, 'bf16', 'sm_90'):
        compiled_in = {p.name for p in variant.kernel.params if p.is_constexpr}
        free = {p.name for p in variant.kernel.params if p.do_not_specialize}
        numbers = {name for name in variant.types if not name.startswith('p_')}
        assert compiled_in.isdisjoint({'B', 'L', 'H', 'W', 'T', 'chunks', 'rows', 'tiles', 'total', 'share'})
        assert numbers <= free | {'eps'}


@pytest.mark.parametrize('name', ['forward one pass', 'forward summary', 'backward prepare', 'backward walk'])
def test_compiles_for_a_gpu_without_spilling(name, aot_report):
    variants = {v.name: v for v in aot_report.scan_variants(96, 1, 6, 'bf16', 'sm_90')}
    row = aot_report.measure(variants[name], 'sm_90')
    assert row['spilled'] == 0
    if name.startswith('forward'):
        assert row['specials'] <= 3  # 2 + N
