"""Show what is installed, what can run here, and the command that fixes each problem; half the stack may be missing.

Example: python tools/doctor.py
"""

import argparse
import importlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent / 'constraints.txt'
# import name -> distributions that may provide it, ours first; whether training needs it
PACKAGES = {
    'torch': (('torch',), True),
    'triton': (('triton', 'pytorch-triton'), False),
    'numba': (('numba',), False),
    'mmengine': (('onedl-mmengine', 'mmengine'), True),
    'mmcv': (('onedl-mmcv', 'mmcv'), True),
    'mmdet': (('onedl-mmdetection', 'mmdet'), False),
    'mmseg': (('onedl-mmsegmentation', 'mmsegmentation'), False),
    'mmpretrain': (('onedl-mmpretrain', 'mmpretrain'), False),
    'pycocotools': (('pycocotools',), True),
    'safetensors': (('safetensors',), False),
    'mmvmamba': (('mmvmamba',), True),
}
OK, NOTE, PROBLEM = 'ok', 'note', 'problem'


@dataclass
class Finding:
    """One row of the table."""

    name: str
    status: str  # 'ok', 'note' (something optional) or 'problem'
    detail: str
    fix: str = ''


def tested_versions() -> dict[str, str]:
    """What the constraints file pins, distribution name to version."""
    lines = (line.split(';')[0].split('#')[0].strip() for line in CONSTRAINTS.read_text().splitlines())
    return dict(line.split('==') for line in lines if '==' in line)


def check_package(name: str) -> Finding:
    """Whether a package is installed, in which version and family, and whether it imports."""
    distributions, needed = PACKAGES[name]
    tested = tested_versions().get(distributions[0])
    fix = 'make setup' if needed else f'pip install -c tools/constraints.txt {distributions[0]}'
    installed = {}
    for distribution in distributions:
        try:
            installed[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    if not installed:
        return Finding(name, PROBLEM if needed else NOTE, 'not installed' + ('' if needed else ' (optional)'), fix)
    if len(installed) > 1:
        return Finding(
            name, PROBLEM, f'two families installed over each other: {installed}', f'pip uninstall {distributions[1]}'
        )
    distribution, version = installed.popitem()
    try:
        importlib.import_module(name)
    except Exception as error:
        return Finding(name, PROBLEM if needed else NOTE, f'{distribution} {version} does not import: {error!r}', fix)
    detail = f'{distribution} {version}'
    if tested and version.split('+')[0] != tested:
        return Finding(name, NOTE, f'{detail} (tested: {tested})')
    return Finding(name, OK, detail)


def check_compiled_operators() -> Finding:
    """Whether mmcv's compiled operators load and run."""
    name = 'mmcv operators'
    try:
        import torch
        from mmcv.ops import nms

        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0]])
        _, kept = nms(boxes, torch.tensor([0.9, 0.8]), iou_threshold=0.5)
    except Exception as error:
        return Finding(
            name,
            PROBLEM,
            f'do not run: {error!r}',
            'pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps -c tools/constraints.txt '
            'onedl-mmcv  (compiles it against the installed torch)',
        )
    return Finding(name, OK if kept.tolist() == [0] else PROBLEM, f'nms kept boxes {kept.tolist()} of 2, expected [0]')


def check_backends() -> list[Finding]:
    """Which scan backends can run, and why the others cannot."""
    try:
        import torch
        from mmvmamba.kernels import availability
    except Exception as error:
        return [Finding('scan backends', PROBLEM, f'mmvmamba.kernels does not import: {error!r}', 'make setup')]
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    findings = []
    for backend, reason in availability(device).items():
        status = OK if reason is None else NOTE
        findings.append(Finding(f'backend {backend}', status, f'runs on {device}' if reason is None else reason))
    return findings


def check_gpu() -> Finding:
    """What torch sees, and what the driver says."""
    driver = ''
    nvidia_smi = shutil.which('nvidia-smi')
    if nvidia_smi:
        query = [nvidia_smi, '--query-gpu=name,driver_version', '--format=csv,noheader']
        driver = subprocess.run(query, capture_output=True, text=True).stdout.strip().replace('\n', '; ')
    try:
        import torch
    except Exception as error:
        return Finding('GPU', PROBLEM, f'torch does not import: {error!r}', 'make setup')
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return Finding('GPU', OK, f'{torch.cuda.device_count()} x {", ".join(names)}; driver: {driver or "unknown"}')
    if driver:
        return Finding(
            'GPU', PROBLEM, f'{driver}, but torch {torch.__version__} does not use it', 'make TORCH=cuda setup'
        )
    return Finding('GPU', NOTE, 'none: training runs on the CPU')


def check_machine() -> list[Finding]:
    """Python and the compiler that mmcv needs."""
    supported = (3, 10) <= sys.version_info[:2] <= (3, 12)
    python = Finding('python', OK, f'{platform.python_version()} ({sys.executable})')
    if not supported:
        python = Finding(
            'python', PROBLEM, f'{platform.python_version()}; 3.10 to 3.12 are tested', 'make PYTHON=python3.11 setup'
        )
    compiler = shutil.which('c++') or shutil.which('g++') or shutil.which('clang++')
    if compiler:
        return [python, Finding('C++ compiler', OK, compiler)]
    return [
        python,
        Finding('C++ compiler', NOTE, 'none; mmcv needs one to be compiled', 'apt-get install g++ python3-dev'),
    ]


def examine() -> list[Finding]:
    """All rows, in the order in which one would mend them."""
    findings = check_machine()
    packages = {name: check_package(name) for name in PACKAGES}
    toolboxes = [packages['mmdet'], packages['mmseg']]
    if not any(toolbox.status == OK for toolbox in toolboxes):  # one is enough: detection or segmentation
        for toolbox in toolboxes:
            toolbox.status = PROBLEM
    findings += packages.values()
    findings += [check_compiled_operators(), *check_backends(), check_gpu()]
    return findings


def show(findings: list[Finding]) -> None:
    """Print the table, with rich where it is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for f in findings:
            print(f'{f.status:8} {f.name:18} {f.detail}' + (f'\n{"":27} fix: {f.fix}' if f.fix else ''))
        return
    table = Table('', 'what', 'found', title='mmvmamba doctor')
    colours = {OK: 'green', NOTE: 'yellow', PROBLEM: 'bold red'}
    for f in findings:
        fix = f'\n[bold]fix:[/bold] {f.fix}' if f.fix else ''
        table.add_row(f'[{colours[f.status]}]{f.status}', f.name, f.detail.replace('[', r'\[') + fix)
    Console().print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Exit code 0: training can run here; 1: something it needs is missing.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--json', action='store_true', help='print the findings as JSON')
    arguments = parser.parse_args(argv)
    findings = examine()
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        show(findings)
    problems = [finding.name for finding in findings if finding.status == PROBLEM]
    if not arguments.json:
        print('Training can run here.' if not problems else f'Training cannot run yet: {", ".join(problems)}.')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
