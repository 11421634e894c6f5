"""With what one extra installs every tool starts; what needs more says so when it is asked for."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tool_runs import ROOT

# what a tool or a backend imports and says how to get, or is asked for by name alone
OPTIONAL = {'triton', 'numba', 'psutil', 'safetensors', 'mmpretrain', 'deepspeed', 'pytest', 'pandas'}
OPTIONAL |= {'mamba_ssm', 'selective_scan_cuda_oflex'}  # rivals in benchmarks
OPTIONAL |= {'onnx', 'onnx_ir', 'onnxruntime', 'onnxscript'}  # the extra `export`, which its tool names
ONE_TOOLBOX = {'mmdet': 'segmentation', 'mmseg': 'detection'}
SOURCES = sorted(path for folder in ('mmvmamba', 'kernels', 'tools') for path in (ROOT / folder).rglob('*.py'))


def brought_by(extra: str) -> set[str]:
    """Import names of everything that `mmvmamba[extra]` installs here, requirements of requirements included."""
    pending, seen = [('mmvmamba', {extra})], set()
    while pending:
        name, extras = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another platform
            continue
        for requirement in map(Requirement, required):
            markers = requirement.marker
            if markers is None or any(markers.evaluate({'extra': e}) for e in ({''} | extras)):
                pending.append((re.sub(r'[-_.]+', '-', requirement.name).lower(), requirement.extras))
    distributions = importlib.metadata.packages_distributions()
    return {
        module
        for module, names in distributions.items()
        if seen & {re.sub(r'[-_.]+', '-', name).lower() for name in names}
    }


def forks_are_installed() -> bool:
    return any(d.name == 'onedl-mmengine' for d in importlib.metadata.distributions())


def imported(tree: ast.AST, everywhere: bool):
    """Top-level names of the packages that a file imports, within functions too if `everywhere`."""
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition('.')[0]


@pytest.mark.skipif(not forks_are_installed(), reason='the extras name the onedl-* packages, others are installed')
def test_every_package_that_the_code_imports_is_brought_by_an_extra_or_optional():
    known = OPTIONAL | set(sys.stdlib_module_names) | {'mmvmamba'}
    known = known.union(*map(brought_by, ('det', 'seg', 'cls')))
    local = {path.stem for path in SOURCES}
    for path in SOURCES:
        unknown = set(imported(ast.parse(path.read_text()), everywhere=True)) - known - local
        assert not unknown, f'{path}: {sorted(unknown)}'


@pytest.mark.parametrize('missing', ONE_TOOLBOX)
def test_every_tool_starts_with_one_toolbox_and_nothing_optional(missing):
    """All tools in one process, in which what is missing cannot be imported."""
    tools = [str(path) for path in sorted((ROOT / 'tools').rglob('*.py')) if path.name != 'aot_report.py']
    gone = sorted({missing} | OPTIONAL - {'numba'})
    code = (
        'import os, runpy, sys\n'
        f'sys.modules.update(dict.fromkeys({gone!r}))\n'
        f'for tool in {tools!r}:\n'
        '    sys.argv, sys.path[0] = [tool, "--help"], os.path.dirname(tool)\n'
        '    try:\n'
        '        runpy.run_path(tool, run_name="__main__")\n'
        '    except SystemExit as left:\n'
        '        assert not left.code, f"{tool}: {left.code}"\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ('words', 'gone', 'code', 'said'),
    [
        (['export.py', 'CONFIG', '--out', 'x.onnx'], 'onnxruntime', 2, 'onnxruntime, not installed here: pip install'),
        (['analysis/erf.py', 'CONFIG', '--size', '32', '--images', '1'], 'psutil', 0, ''),
        (['analysis/erf.py', 'resnet50', '--size', '32'], 'mmdet', 2, 'mmdet'),
        (['benchmark.py', 'kernels', '--height', '4', '--width', '4'], 'psutil', 2, 'pip install psutil'),
        (['aot_report.py'], 'triton', 1, 'pip install triton'),
        (['make_shapes_dataset.py', 'out'], 'pycocotools', 1, 'pip install pycocotools'),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_needs_more_says_so(words, gone, code, said, tmp_path):
    (tmp_path / 'config.py').write_text(
        "default_scope = 'mmdet'\n"
        "model = dict(backbone=dict(type='mmvmamba.VMamba', embed_dims=4, depths=(1, 1), out_indices=(1,)))\n"
    )
    tool, *arguments = words
    arguments = [str(tmp_path / 'config.py') if word == 'CONFIG' else word for word in arguments]
    hidden = tmp_path / 'sitecustomize.py'
    hidden.write_text(f'import sys\nsys.modules[{gone!r}] = None\n')
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / tool), *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, 'PYTHONPATH': str(tmp_path), 'MMVMAMBA_BACKEND': 'torch', 'OMP_NUM_THREADS': '1'},
    )  # fmt: skip
    assert done.returncode == code, done.stderr[-3000:]
    assert said in done.stderr
    assert 'Traceback' not in done.stderr
    assert not Path(tmp_path, 'out').exists()
