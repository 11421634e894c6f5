"""Show what is installed, what can run here, and the command that fixes each problem; half the stack may be missing.

Examples:
    python tools/doctor.py
    python tools/doctor.py --verify configs/maskrcnn_vmamba_t.py    # on a GPU: every Triton kernel that it needs
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent / 'constraints.txt'
# import name -> distributions that may provide it (the forks', then the originals'); whether training needs it
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
FORKS, ORIGINALS = 'the onedl-* forks', 'the original OpenMMLab packages'
# The originals that tools/compat_check.sh tests; the forks are pinned in the constraints file.
ORIGINAL_VERSIONS = {
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'mmsegmentation': '1.2.2',
    'mmpretrain': '1.2.0',
}
TOOLBOXES = ('mmdet', 'mmseg', 'mmpretrain')  # detection, segmentation, classification
OF_A_FAMILY = ('mmengine', 'mmcv', *TOOLBOXES)
OLDEST_TRITON = (3, 6)
OK, NOTE, PROBLEM = 'ok', 'note', 'problem'


@dataclass
class Finding:
    """One row of the table."""

    name: str
    status: str  # 'ok', 'note' (something optional) or 'problem'
    detail: str
    fix: str = ''


def tested_versions() -> dict[str, str]:
    """Distribution name to the version that is tested: the pinned ones, and the originals."""
    lines = (line.split(';')[0].split('#')[0].strip() for line in CONSTRAINTS.read_text().splitlines())
    return {**dict(line.split('==') for line in lines if '==' in line), **ORIGINAL_VERSIONS}


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def family() -> str | None:
    """Which of the two families that share import names is installed; the one that mmcv is of, where both are."""
    for name in ('mmcv', 'mmengine', *TOOLBOXES):
        for distribution in PACKAGES[name][0]:
            if version_of(distribution):
                return FORKS if distribution.startswith('onedl-') else ORIGINALS
    return None


def install_command(name: str) -> str:
    """How to install a package here: never one of the other family, which would overwrite what is there."""
    forked, *original = PACKAGES[name][0]
    if name == 'mmvmamba':
        return 'pip install .' if family() else 'make setup'
    if not forked.startswith('onedl-'):
        return f'pip install -c tools/constraints.txt {forked}' if family() != ORIGINALS else f'pip install {forked}'
    if family() == ORIGINALS:
        distribution = original[0]
        version = ORIGINAL_VERSIONS.get(distribution)
        if name == 'mmcv':
            return f'python tools/build_mmcv.py mmcv=={version}'
        return f'pip install {distribution}' + (f'=={version}' if version else '')
    if family() is None:
        return 'make setup'
    if name == 'mmcv':
        return f'python tools/build_mmcv.py {forked}=={tested_versions()[forked]}'
    return f'pip install -c tools/constraints.txt {forked}'


def check_family() -> Finding:
    """Which family of OpenMMLab packages is here, and that it is one."""
    name = 'OpenMMLab family'
    found = {package: [d for d in PACKAGES[package][0] if version_of(d)] for package in OF_A_FAMILY}
    both = [distributions for distributions in found.values() if len(distributions) > 1]
    if both:
        kept = sorted(d for distributions in both for d in distributions if d.startswith('onedl-'))
        gone = ' '.join(d for distributions in both for d in distributions)
        return Finding(
            name,
            PROBLEM,
            f'both, one written over the other: {gone}',
            f'pip uninstall -y {gone}, then install one of each again, as they share files: '
            f'pip install -c tools/constraints.txt {" ".join(kept)}, or the originals',
        )
    kinds = {d.startswith('onedl-') for distributions in found.values() for d in distributions}
    if not kinds:
        return Finding(name, PROBLEM, 'none', 'make setup')
    if len(kinds) > 1:
        mixed = ', '.join(d for distributions in found.values() for d in distributions)
        return Finding(name, NOTE, f'a mixture, which is not tested: {mixed}')
    if family() == FORKS:
        return Finding(name, OK, FORKS)
    return Finding(name, OK, f'{ORIGINALS}: install mmvmamba without extras, whose packages are {FORKS}')


def check_package(name: str) -> Finding:
    """Whether a package is installed, in which version, and whether it imports."""
    distributions, needed = PACKAGES[name]
    fix = install_command(name)
    if name == 'mmpretrain' and version_of('torchvision') is None:  # which its package does not ask for
        fix += ' torchvision'
    installed = [distribution for distribution in distributions if version_of(distribution)]
    if not installed:
        return Finding(name, PROBLEM if needed else NOTE, 'not installed' + ('' if needed else ' (optional)'), fix)
    distribution = installed[0]
    version = version_of(distribution)
    try:
        importlib.import_module(name)
    except Exception as error:
        return Finding(name, PROBLEM if needed else NOTE, f'{distribution} {version} does not import: {error!r}', fix)
    if name == 'triton' and tuple(int(part) for part in version.split('.')[:2]) < OLDEST_TRITON:
        return old_triton(version)
    if name == 'triton' and version != (own := torchs_own_triton() or version):
        return Finding(
            name, NOTE, f'triton {version}; torch asks for {own}, without which torch.compile fails on a GPU'
        )
    tested = tested_versions().get(distribution)
    if tested and version.split('+')[0] != tested:
        return Finding(name, NOTE, f'{distribution} {version} (other than tested: {tested})')
    return Finding(name, OK, f'{distribution} {version}')


def torchs_own_triton() -> str | None:
    """The version of Triton that the installed torch requires; None where it requires none, as CPU builds do."""
    try:
        required = importlib.metadata.requires('torch') or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (re.match(r'triton\s*\(?\s*==\s*([\w.]+)', line) for line in required)
    return next((match.group(1) for match in found if match), None)


def old_triton(version: str) -> Finding:
    """What a Triton that is too old for our kernels means, and what a newer one costs."""
    return Finding(
        'triton',
        NOTE,
        f'triton {version}, too old for our GPU kernels (3.6 or newer); on a GPU the backend torch runs instead',
        "pip install --no-deps triton==3.6.0  (gives the kernels; its price: torch.compile on a GPU, as this torch's "
        'compiler needs its own Triton)',
    )


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
            f'{install_command("mmcv")}  (compiles it against the installed torch)',
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


def check_verdicts() -> list[Finding]:
    """Which Triton kernels have proved themselves on this GPU; a row of its own for each that has not."""
    try:
        import torch
        from mmvmamba.kernels import availability, dispatch

        if not torch.cuda.is_available() or availability('cuda')['triton'] is not None:
            return []
        from mmvmamba.kernels import verify

        store = verify.store_of(torch.device('cuda', torch.cuda.current_device()))
        mode = dispatch.verify_mode()
    except Exception as error:
        return [Finding('Triton kernels', PROBLEM, f'their verdicts cannot be looked up: {error!r}')]
    return list_verdicts(store.entries(), mode)


def list_verdicts(entries: dict, mode: str = 'first') -> list[Finding]:
    """A row for all verdicts on this machine, and one for each failed one."""
    name, fix = 'Triton kernels', 'python tools/doctor.py --verify CONFIG'
    failed = [entry for entry in entries.values() if not entry['passed']]
    proved = len(entries) - len(failed)
    if mode == 'off':
        summary = Finding(name, NOTE, 'trusted without a check: MMVMAMBA_VERIFY=off')
    elif not entries:
        summary = Finding(name, NOTE, 'none has been checked on this GPU yet: each will be on its first call', fix)
    else:
        summary = Finding(name, OK, f'{proved} variants proved on this GPU, {len(failed)} failed')
    rows = [
        Finding(
            f'{entry["operator"]} {entry["direction"]}',
            NOTE,
            f'failed its check, the torch backend runs: {entry["call"]}: {entry["reason"]}',
            fix,
        )
        for entry in failed
    ]
    return [summary, *rows]


def verify_kernels(config: str, shapes: list | None, jobs: int, device: str = 'cuda') -> list[dict]:
    """Prove every variant of a Triton kernel that a config needs; a row each, with progress on standard error.

    Args:
        config: path of the config.
        shapes: batch, height and width, each to be trained and tested with; None for those of the config's data.
        jobs: processes that check at a time.
        device: where; 'cuda' unless a GPU is emulated.
    """
    from mmvmamba.kernels import verify
    from rich.console import Console
    from rich.progress import track

    from mmvmamba.analysis import needed_kernels
    from mmvmamba.engine import launch

    cfg = launch.load_config(config)
    wanted = (
        needed_kernels.shapes(cfg) if shapes is None else [(way, *shape) for shape in shapes for way in (True, False)]
    )
    dtypes = needed_kernels.dtypes(cfg)
    shown = dict(console=Console(stderr=True), transient=True)
    calls = {}
    total = len(wanted) * len(dtypes) * len(needed_kernels.backbones(cfg))
    for found in track(needed_kernels.calls(cfg, wanted, dtypes, device), 'shapes', total, **shown):
        calls.update(dict.fromkeys(found))
    pending = verify.variants(track(calls, 'variants', **shown))
    rows = []
    for call, verdict in track(verify.prove_all(pending, jobs), 'checks', len(pending), **shown):
        worst = max(verdict.errors.values(), key=lambda values: values[0] / values[2], default=None)
        rows.append(
            dict(
                operator=call.operator,
                direction=call.direction,
                call=call.words(),
                passed=verdict.passed,
                worst='' if worst is None else f'{worst[0]:.1e} of {worst[2]:.1e}',
                seconds=verdict.seconds,
                reason=verdict.reason,
            )
        )
    return sorted(rows, key=lambda row: (row['operator'], row['direction'], row['call']))


def show_verdicts(rows: list[dict]) -> None:
    """Print the table of `verify_kernels`."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    columns = ('operator', 'pass', 'variant', 'verdict', 'worst error of its limit', 'seconds')
    table = Table(*columns, title='Triton kernels on this GPU')
    for row in rows:
        verdict = '[green]proved' if row['passed'] else f'[bold red]failed:[/bold red] {escape(row["reason"])}'
        values = row['operator'], row['direction'], row['call'], verdict, row['worst'], f'{row["seconds"]:.1f}'
        table.add_row(*values)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def verify(arguments: argparse.Namespace) -> int:
    """`--verify`: what comes back is the exit code."""
    import torch
    from mmvmamba.kernels import availability

    if not torch.cuda.is_available():
        print('PyTorch sees no GPU: there is nothing to verify', file=sys.stderr)
        return 1
    reason = availability('cuda')['triton']
    if reason is not None:
        print(f'the Triton kernels cannot run here: {reason}', file=sys.stderr)
        return 1
    start = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):  # where toolboxes greet
        rows = verify_kernels(arguments.verify, arguments.shapes, arguments.jobs)
    seconds, failed = time.monotonic() - start, sum(not row['passed'] for row in rows)
    if arguments.json:
        machine = dict(gpu=torch.cuda.get_device_name(), seconds=round(seconds, 1), jobs=arguments.jobs)
        print(json.dumps(dict(machine, config=arguments.verify, verdicts=rows), indent=2))
    else:
        show_verdicts(rows)
        print(
            f'{len(rows) - failed} of {len(rows)} variants proved on {torch.cuda.get_device_name()} in {seconds:.0f} s'
        )
    return 1 if failed else 0


def _shape(text: str) -> tuple[int, int, int]:
    """'2x800x1280' as batch, height and width."""
    sizes = text.split('x')
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f'{text!r}: expected batch, height and width, such as 2x800x1280')
    batch, height, width = map(int, sizes)
    return batch, height, width


def examine() -> list[Finding]:
    """All rows, in the order in which one would mend them."""
    findings = check_machine()
    packages = {name: check_package(name) for name in PACKAGES}
    if not set(TOOLBOXES) & set(sys.modules):  # one that imports is enough
        for name in TOOLBOXES:
            packages[name].status = PROBLEM
    findings += packages.values()
    findings += [check_family(), check_compiled_operators(), *check_backends(), check_gpu(), *check_verdicts()]
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
        epilog='Exit code 0: training can run here; 1: something it needs is missing, or --verify: a kernel failed.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--json', action='store_true', help='print the findings as JSON')
    parser.add_argument(
        '--verify',
        metavar='CONFIG',
        help='check every Triton kernel that CONFIG needs, at the sizes of its data, in training (both passes) '
        'and test, in float32 and in mixed precision; what is proved already is checked again only with '
        'MMVMAMBA_VERIFY=always',
    )
    parser.add_argument(
        '--shapes', nargs='+', type=_shape, metavar='BxHxW', help='with --verify: instead of the sizes of its data'
    )
    parser.add_argument(
        '--jobs', type=int, default=min(4, os.cpu_count() or 1), help='with --verify: checks at a time (%(default)s)'
    )
    arguments = parser.parse_args(argv)
    if arguments.verify:
        return verify(arguments)
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
