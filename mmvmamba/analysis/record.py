"""What a measurement is to be read with: which sources ran, on what, and whether their tests passed."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]


def commit() -> str:
    """The commit that is checked out, with '-dirty' behind it where files differ from it."""
    if shutil.which('git') is None:
        return 'no git'
    git = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=ROOT, capture_output=True, text=True)
    return git.stdout.strip() or 'no git checkout'


def sources() -> str:
    """Fingerprint of the package's code: tells sources apart where there is no git checkout, or a changed one."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in ('kernels', 'mmvmamba') for path in (ROOT / folder).rglob('*.py')):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def clocks() -> str | None:
    """Clocks and power limit of the GPU at this moment, or None where nvidia-smi is missing or has no GPU."""
    if shutil.which('nvidia-smi') is None:
        return None
    fields = ('clocks.sm', 'clocks.max.sm', 'clocks.mem', 'power.limit', 'driver_version')
    command = ['nvidia-smi', f'--query-gpu={",".join(fields)}', '--format=csv,noheader']
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return None
    values = done.stdout.splitlines()[0].split(', ')
    return ', '.join(f'{field} {value}' for field, value in zip(fields, values, strict=True))


def write_tests(reports: list[Path], about: dict[str, str], out: Path) -> bool:
    """Sum up pytest's XML reports of several runs of the same tests.

    Args:
        reports: files that `pytest --junitxml` wrote, one a run.
        about: what `timing.machine` returned where they ran.
        out: JSON file to write.

    Returns:
        Whether every run ran tests, none failed and none was skipped.
    """
    suites = [ElementTree.parse(report).getroot().find('testsuite') for report in reports]
    runs = [{name: int(suite.get(name)) for name in ('tests', 'failures', 'errors', 'skipped')} for suite in suites]
    passed = all(run['tests'] and not (run['failures'] or run['errors'] or run['skipped']) for run in runs)
    out.write_text(json.dumps({'passed': passed, 'runs': runs, 'machine': about}, indent=2))
    return passed


def result_of_tests(about: dict[str, str], file: Path | None) -> str:
    """What `write_tests` wrote, in words, if those were the sources and the device of `about`."""
    result = json.loads(file.read_text()) if file else None
    if result is None or any(result['machine'].get(key) != about[key] for key in ('sources', 'device')):
        return 'not run at this commit on this device'
    counts = ' and '.join(str(run['tests'] - run['skipped']) for run in result['runs'])
    return f'{counts} passed' if result['passed'] else f'FAILED: {result["runs"]}'
