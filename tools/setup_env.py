"""Create the virtual environment and install the tested stack into it: what `make setup` runs.

Needs nothing but Python's standard library, as it runs before anything is installed. Steps that are done are not done
again: a stamp in the environment remembers the files and options it was made from.

Example: python tools/setup_env.py --venv .venv --torch auto
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / 'tools' / 'constraints.txt'
INPUTS = (CONSTRAINTS, ROOT / 'setup.py', ROOT / 'pyproject.toml', Path(__file__).resolve())
SUPPORTED = ((3, 10), (3, 12))
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'
TAIL = 25  # lines of pip's log that are shown when a step fails


class SetupError(Exception):
    """A step that failed, with what to do about it."""


def pinned(name: str) -> str:
    """The requirement of `name` as the constraints file states it."""
    for line in CONSTRAINTS.read_text().splitlines():
        requirement = line.split(';')[0].split('#')[0].strip()
        if requirement.lower().startswith((f'{name}==', f'{name}<', f'{name}>')):
            return requirement
    raise SetupError(f'{name} is not in {CONSTRAINTS}')


def check_python(version: tuple[int, int]) -> None:
    """Refuse a Python that the pinned packages have no wheels for."""
    if not SUPPORTED[0] <= version <= SUPPORTED[1]:
        low, high = ('.'.join(map(str, v)) for v in SUPPORTED)
        raise SetupError(
            f'Python {version[0]}.{version[1]} is not supported; {low} to {high} are.\n'
            f'Name another one: make PYTHON=python3.11 setup'
        )


def choose_torch(option: str) -> str:
    """Resolve 'auto' to 'cuda' where an NVIDIA driver answers, else to 'cpu'."""
    if option != 'auto':
        return option
    nvidia_smi = shutil.which('nvidia-smi')
    if nvidia_smi and subprocess.run([nvidia_smi, '-L'], capture_output=True).returncode == 0:
        return 'cuda'
    return 'cpu'


def fingerprint(variant: str, version: tuple[int, int]) -> str:
    """What the stamp holds: a change in any of these sets the environment up again."""
    digest = hashlib.sha256(f'{variant} {version}'.encode())
    for path in INPUTS:
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Environment:
    """A virtual environment being set up, step by step, with one log."""

    def __init__(self, path: Path):
        self.path = path
        self.python = path / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
        self.log = path / 'setup.log'
        self.stamp = path / 'setup.stamp'
        self._step = 0

    def create(self) -> None:
        if not self.python.exists():
            subprocess.run([sys.executable, '-m', 'venv', str(self.path)], check=True)
        self.log.write_text('')

    def pip(self, *arguments: str, quiet: bool = False) -> bool:
        """Run pip with the constraints, its output into the log; whether it succeeded."""
        command = [str(self.python), '-m', 'pip', *arguments]
        if arguments[0] == 'install':
            command += ['-c', str(CONSTRAINTS)]
        with self.log.open('a') as log:
            log.write(f'\n$ {" ".join(command)}\n')
            log.flush()
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        return done.returncode == 0

    def step(self, what: str, advice: str, *arguments: str) -> None:
        """One visible step: say it, run pip, say how long it took or why it failed."""
        self._step += 1
        print(f'[{self._step}/4] {what} ...', end=' ', flush=True)
        start = time.monotonic()
        succeeded = self.pip('install', *arguments)
        print(f'{time.monotonic() - start:.0f} s' if succeeded else 'failed', flush=True)
        if not succeeded:
            tail = '\n'.join(self.log.read_text(errors='replace').splitlines()[-TAIL:])
            raise SetupError(f'{tail}\n\nThis step failed: {what}\nWhole log: {self.log}\nWhat to do: {advice}')


NETWORK = 'look at the lines above; if a package was not found, check the network and the proxy, then run make again.'
COMPILER = (
    'mmcv compiles its operators: it needs a C++ compiler and the headers of this Python '
    '(Debian and Ubuntu: apt-get install g++ python3-dev). A wheel of onedl-mmcv in a folder named by PIP_FIND_LINKS '
    'that fits this Python and torch is used instead of compiling.'
)


def torch_arguments(env: Environment, variant: str) -> list[str]:
    """How pip is asked for the wanted build of torch.

    On Linux the registry's own build is the CUDA one, several GB; the CPU build has an index of its own. A wheel in a
    folder that pip already knows (PIP_FIND_LINKS) spares asking that index.
    """
    requirement = pinned('torch')
    if variant == 'cuda' or platform.system() != 'Linux':
        return [requirement]
    local = f'{requirement}+cpu'
    if env.pip('install', '--dry-run', '--no-index', '--no-deps', local):
        return [local]
    return [local, '--extra-index-url', CPU_INDEX]


def has_mmcv_wheel(env: Environment) -> bool:
    """Whether mmcv comes ready-made, or is there already."""
    return env.pip(
        'install', '--dry-run', '--no-deps', '--only-binary=:all:', '--no-build-isolation', pinned('onedl-mmcv')
    )


def set_up(venv: Path, torch_option: str) -> None:
    """Bring the environment at `venv` to the state that the constraints file describes."""
    check_python(sys.version_info[:2])
    variant = choose_torch(torch_option)
    env = Environment(venv)
    stamp = fingerprint(variant, sys.version_info[:2])
    if env.stamp.exists() and env.stamp.read_text() == stamp:
        return
    start = time.monotonic()
    print(f'Setting up {venv} (Python {platform.python_version()}, torch for {variant}); log: {env.log}', flush=True)
    env.create()
    env.step('build tools', NETWORK, '--upgrade', 'pip', 'setuptools<80', 'wheel', 'ninja', 'psutil')
    env.step(f'{pinned("torch")} ({variant})', NETWORK, *torch_arguments(env, variant))
    mmcv = pinned('onedl-mmcv')
    if has_mmcv_wheel(env):
        mmcv_step = f'{mmcv} (prebuilt)'
    else:
        jobs = os.environ.get('MAX_JOBS', os.cpu_count())
        mmcv_step = (
            f'{mmcv}, compiling: about 25 minutes on two cores, minutes on a workstation ({jobs} jobs; MAX_JOBS)'
        )
    env.step(mmcv_step, COMPILER, '--no-build-isolation', mmcv)
    env.step('mmvmamba (editable), toolboxes, test tools', NETWORK, '--no-build-isolation', '--editable', '.[test]')
    env.stamp.write_text(stamp)
    print(f'Environment ready after {(time.monotonic() - start) / 60:.1f} minutes.', flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv', help='where the environment lives')
    parser.add_argument(
        '--torch',
        choices=('auto', 'cpu', 'cuda'),
        default='auto',
        help='build of torch; auto: cuda where an NVIDIA driver answers',
    )
    arguments = parser.parse_args(argv)
    try:
        set_up(arguments.venv.absolute(), arguments.torch)
    except SetupError as error:
        print(f'\nset-up failed.\n{error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
