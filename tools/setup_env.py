"""Create the virtual environment and install the tested stack into it: what `make setup` runs.

Needs nothing but Python's standard library, as it runs before anything is installed. Steps that are done are not done
again: a stamp in the environment remembers the files and options it was made from. A set-up that was interrupted, at
whatever step, goes on when it is started again.

Example: python tools/setup_env.py --venv .venv --torch auto
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two set-ups of one environment apart
    fcntl = None

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / 'tools' / 'constraints.txt'
INPUTS = (CONSTRAINTS, ROOT / 'setup.py', ROOT / 'pyproject.toml', Path(__file__).resolve())
SUPPORTED = ((3, 10), (3, 12))
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'
MMCV_INDEX = 'https://mmwheels.onedl.ai'  # wheels that the forks' maintainers publish, a folder per torch build
INDEX_LIMIT = 8.0  # seconds after which that index counts as unreachable
TORCHVISION_LIMIT = 60.0  # seconds for finding and fetching 2 MB
LOCK_LIMIT = 1800.0  # seconds to wait for another set-up of the same environment
TAIL = 25  # lines of the log that are shown when a step fails
WIDTH = 200  # and how much of each: a compiler's command line fills a page

# What the log says, and what to do about it; the first that is found is said.
REMEDIES = (
    (
        r'No space left on device|Errno 28\b|Disk quota exceeded',
        'the disk is full: set-up needs about 4 GB beside the clone (12 GB with CUDA, and 1 GB in the folder for '
        'temporary files, TMPDIR). Free some and run make again: it goes on from here.',
    ),
    (
        r'Killed signal terminated program|[Cc]annot allocate memory|virtual memory exhausted|MemoryError',
        'memory ran out: close other programs, or compile fewer files at a time with MAX_JOBS=1 make setup; what is '
        'compiled is kept.',
    ),
    (
        r'CUDA_HOME environment variable is not set|nvcc.{0,30}(not found|No such file)|detected CUDA version',
        "mmcv's GPU operators need the CUDA toolkit (nvcc) of the version that torch names (python -c 'import torch; "
        "print(torch.version.cuda)'): install it and set CUDA_HOME, or train on the CPU with make TORCH=cpu setup.",
    ),
    (
        r'Python\.h: No such file',
        'the headers of this Python are missing (Debian, Ubuntu: apt-get install python3-dev; Fedora: dnf install '
        'python3-devel), or name another Python: make PYTHON=python3.11 setup.',
    ),
    (
        r'CERTIFICATE_VERIFY_FAILED|SSLError',
        "the package index's certificate is not trusted: behind a company's proxy, set PIP_CERT to its certificate.",
    ),
    (
        r'NewConnectionError|[Nn]ame resolution|Name or service not known|Network is unreachable|ConnectTimeout|'
        r'Connection refused|ProxyError|Max retries exceeded|Read timed out|ReadTimeoutError|Connection reset',
        'no network, or the package index does not answer: check the connection and the proxy (HTTPS_PROXY), then run '
        'make again: it goes on from here. Wheels in a folder named by PIP_FIND_LINKS are used without a network.',
    ),
    (
        r'No matching distribution found|Could not find a version',
        'the index has no such version for this Python and system. Behind a mirror, name the real one '
        '(PIP_INDEX_URL); or name another Python: make PYTHON=python3.11 setup.',
    ),
    (
        r'[Pp]ermission denied|Read-only file system',
        'a file or folder cannot be written: make the clone and its .venv writable, or name another place: '
        'make VENV=/path/to/venv setup.',
    ),
)
NETWORK = 'look at the lines above; if a package was not found, check the network and the proxy, then run make again.'


class SetupError(Exception):
    """A step that failed, with what to do about it."""


def remedy(output: str, otherwise: str) -> str:
    """What to do about a failure whose output is `output`."""
    return next((words for pattern, words in REMEDIES if re.search(pattern, output)), otherwise)


class Line:
    """What a step shows of itself: a line that moves on a terminal, one plain line elsewhere."""

    def __init__(self, text: str):
        self.text = text
        self.moving = sys.stdout.isatty()
        self.start = time.monotonic()
        self._marks = 0
        if not self.moving:
            print(f'{text} ...', end='', flush=True)

    def update(self, done: int = 0, total: int = 0) -> None:
        """Show seconds and, where they are known, the files done; a plain line gets a mark at every quarter."""
        if self.moving:
            status = f'file {done} of {total}, ' if total else ''
            shown = f'{self.text} ... {status}{time.monotonic() - self.start:.0f} s'
            print(f'\r\033[K{shown[: shutil.get_terminal_size().columns - 1]}', end='', flush=True)
        elif total and done * 4 // total > self._marks:
            self._marks = done * 4 // total
            print(f' {done}/{total}', end='', flush=True)

    def end(self, succeeded: bool = True, note: str = '') -> None:
        """Finish the line with the seconds that the step took."""
        outcome = f'{time.monotonic() - self.start:.0f} s{note}' if succeeded else 'failed'
        print(f'\r\033[K{self.text} ... {outcome}' if self.moving else f' {outcome}', flush=True)


def hold(folder: Path) -> int | None:
    """Lock a folder, waiting for another set-up that holds it; the lock lasts as long as the descriptor is open."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + LOCK_LIMIT
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            if not told:
                print(f'Another set-up, or what one left running, is at work in {folder}: waiting for it.', flush=True)
                told = True
        if time.monotonic() > deadline:
            raise SetupError(f'{folder} is still held by another set-up: end its processes, then run make again.')
        time.sleep(1)


class Shell:
    """Runs commands into a log. They end with this process, or else keep the lock, so that no second set-up starts."""

    def __init__(self, log: Path, lock: int | None = None):
        self.log = log
        self.locks = () if lock is None else (lock,)

    def run(
        self,
        command: list[str],
        line: Line | None = None,
        progress: Callable[[], tuple[int, int]] = lambda: (0, 0),
        limit: float | None = None,
        **options,
    ) -> tuple[bool, str]:
        """Run a command, updating `line` meanwhile; whether it succeeded within `limit` seconds, and its output."""
        with self.log.open('a') as log:
            log.write(f'\n$ {shlex.join(command)}\n')
            log.flush()
            begin = self.log.stat().st_size
            options = {'cwd': ROOT, 'start_new_session': True, 'pass_fds': self.locks, **options}
            if os.name == 'nt':
                options.pop('pass_fds')
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, **options)
        start = time.monotonic()
        try:
            while child.poll() is None and (limit is None or time.monotonic() - start < limit):
                if line:
                    line.update(*progress())
                try:
                    child.wait(0.3)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL) if os.name == 'posix' else child.kill()
                child.wait()
        with self.log.open(errors='replace') as log:
            log.seek(begin)
            return child.returncode == 0, log.read()

    def failure(self, what: str, output: str, otherwise: str) -> SetupError:
        """The error of a failed step: the last lines of its output, and what to do."""
        tail = '\n'.join(line[:WIDTH] for line in output.splitlines()[-TAIL:])
        return SetupError(
            f'{tail}\n\nThis step failed: {what}\nWhole log: {self.log}\nWhat to do: {remedy(output, otherwise)}'
        )


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

    STEPS = 5

    def __init__(self, path: Path):
        self.path = path
        self.python = path / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
        self.stamp = path / 'setup.stamp'
        self.shell = Shell(path / 'setup.log')
        self._step = 0

    def create(self) -> None:
        """Make the environment; one whose making or whose pip was cut off is made anew."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.shell = Shell(self.path / 'setup.log', hold(self.path))
        self.stamp.unlink(missing_ok=True)
        self.shell.log.write_text('')
        if self.python.exists() and self.shell.run([str(self.python), '-m', 'pip', '--version'])[0]:
            self._forget_half_installed()
            return
        command = [sys.executable, '-m', 'venv', '--clear', str(self.path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.shell.log.write_text(done.stdout)  # only then, as the folder was emptied
        if done.returncode:
            advice = 'this Python lacks the module venv or ensurepip (Debian, Ubuntu: apt-get install python3-venv).'
            raise self.shell.failure('creating the virtual environment', done.stdout, advice)

    def sites(self) -> list[Path]:
        """The folders of its packages."""
        return [*self.path.glob('lib/python*/site-packages'), *self.path.glob('Lib/site-packages')]

    def _forget_half_installed(self) -> None:
        """Remove what pip left when it was killed: packages without the list of files that it writes last."""
        for site in self.sites():
            for info in site.glob('*.dist-info'):
                if not (info / 'RECORD').exists():
                    shutil.rmtree(info)
            for left in site.glob('~*'):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def pip(self, *arguments: str, line: Line | None = None, limit: float | None = None) -> tuple[bool, str]:
        """Run pip with the constraints, its output into the log; whether it succeeded, and the output."""
        command = [str(self.python), '-m', 'pip', *arguments]
        if arguments[0] == 'install':
            # bytecode of every module of torch and scipy takes half a minute; Python makes that of what is imported
            command += ['-c', str(CONSTRAINTS), '--no-compile']
        return self.shell.run(command, line, limit=limit)

    def ask(self, code: str) -> dict:
        """What Python code run in the environment prints as JSON; nothing where it fails."""
        done = subprocess.run([str(self.python), '-c', code], capture_output=True, text=True, cwd=self.path)
        try:
            return json.loads(done.stdout)
        except ValueError:
            return {}

    def begin(self, what: str) -> Line:
        """The line of the next step."""
        self._step += 1
        return Line(f'[{self._step}/{self.STEPS}] {what}')

    def step(self, what: str, advice: str, *arguments: str) -> None:
        """One visible step: say it, run pip, say how long it took or why it failed."""
        line = self.begin(what)
        succeeded, output = self.pip('install', *arguments, line=line)
        line.end(succeeded)
        if not succeeded:
            raise self.shell.failure(what, output, advice)


def torch_arguments(env: Environment, variant: str) -> list[str]:
    """How pip is asked for the wanted build of torch.

    On Linux the registry's own build is the CUDA one, several GB; the CPU build has an index of its own. A wheel in a
    folder that pip already knows (PIP_FIND_LINKS) spares asking that index. To pip a CPU build satisfies the plain
    version, so one that is there must be told to go.
    """
    requirement = pinned('torch')
    if platform.system() != 'Linux':
        return [requirement]
    if variant == 'cuda':
        installed = env.ask('import json, torch; print(json.dumps({"cuda": torch.version.cuda}))')
        return [requirement, *(['--force-reinstall'] if installed.get('cuda', '') is None else [])]
    local = f'{requirement}+cpu'
    if env.pip('install', '--dry-run', '--no-index', '--no-deps', local)[0]:
        return [local]
    return [local, '--extra-index-url', CPU_INDEX]


def fit_torchvision(env: Environment, variant: str) -> None:
    """Have torchvision's build for CPUs beside torch's, where a folder that pip knows or the CPU index has it.

    The registry's own for Linux is built for CUDA. Beside a torch for CPUs it does as well, but for its own box
    operators, which nothing here uses (`mmvmamba.torchvision_stubs`), so doing without that index is no failure.
    """
    requirement = pinned('torchvision')
    line = env.begin(f'{requirement} ({variant})')
    code = 'import json; from importlib.metadata import version; print(json.dumps({"vision": version("torchvision")}))'
    installed = f'torchvision=={env.ask(code).get("vision")}'
    if variant == 'cuda' or platform.system() != 'Linux':
        if installed.endswith('+cpu'):  # which satisfies the plain version, as torch's does
            env.pip('uninstall', '--yes', 'torchvision', line=line)
        line.end(note=' (comes with the toolboxes)')
        return
    local = f'{requirement}+cpu'
    sources = (['--no-index'], ['--index-url', CPU_INDEX, '--retries', '0', '--timeout', '4'])
    found = installed == local or any(
        env.pip('install', '--no-deps', *where, local, line=line, limit=TORCHVISION_LIMIT)[0] for where in sources
    )
    line.end(note='' if found else " (the CPU index does not answer; the registry's build comes with the toolboxes)")


# The operators are loaded without the package around them, whose requirements are not installed yet.
OPERATORS = """
import glob, importlib.machinery, importlib.util, json, sysconfig
import torch
found = {'torch': torch.__version__, 'cuda': torch.version.cuda}
for path in glob.glob(sysconfig.get_path('platlib') + '/mmcv/_ext*'):
    loader = importlib.machinery.ExtensionFileLoader('_ext', path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader('_ext', loader))
    loader.exec_module(module)
    found['operators'] = module.get_compiling_cuda_version()
print(json.dumps(found))
"""


class Mmcv:
    """mmcv's way into the environment: as it is there, ready-made, or compiled against the installed torch."""

    def __init__(self, env: Environment, variant: str):
        self.env = env
        self.variant = variant
        self.requirement = pinned('onedl-mmcv')
        self.stamp = env.path / 'mmcv.stamp'  # the torch that the installed operators were seen to run with
        self.torch = env.ask('import json, torch; print(json.dumps({"v": torch.__version__, "c": torch.version.cuda}))')

    def runs(self) -> bool:
        """Whether the installed operators load beside this torch, with GPU operators where its build has them."""
        operators = self.env.ask(OPERATORS).get('operators')
        return bool(operators) and (self.variant == 'cpu' or operators != 'not available')

    def key(self) -> str:
        return f'{self.requirement} {self.torch.get("v")} {sys.version_info[:2]}'

    def install(self) -> None:
        """Install it by the quickest way that works here."""
        if self.stamp.exists() and self.stamp.read_text() == self.key() and self.runs():
            self.env.begin(f'{self.requirement} (installed)').end()
            return
        self.stamp.unlink(missing_ok=True)
        line = self.env.begin(self.requirement)
        for where, options in self._offers():
            # pip's own cache is keyed by name and version alone: what it holds may be compiled for another torch
            fresh = ('--no-deps', '--only-binary=:all:', '--no-cache-dir', '--force-reinstall')
            if self.env.pip('install', *fresh, *options, self.requirement, line=line)[0] and self.runs():
                line.end(note=f' ({where})')
                break
        else:
            line.end(note=' (no wheel for this Python and torch; compiling)')
            self._compile()
        self.stamp.write_text(self.key())

    def _offers(self):
        """Where a wheel could come from: folders that pip knows, then the index of the forks."""
        yield 'wheel from a folder', ('--no-index',)
        index = os.environ.get('MMCV_INDEX', MMCV_INDEX)
        if not index or platform.system() != 'Linux' or not self.torch:
            return
        build = f'cu{self.torch["c"].replace(".", "")}' if self.torch['c'] else 'cpu'
        version = self.torch['v'].split('+')[0].replace('.', '')
        options = ('--index-url', f'{index}/{build}-torch{version}/simple/', '--retries', '0', '--timeout', '4')
        name, wanted = self.requirement.split('==')
        found, output = self.env.pip('index', 'versions', '--only-binary=:all:', *options, name, limit=INDEX_LIMIT)
        if found and re.search(rf'(?<![\d.]){re.escape(wanted)}(?![\d.])', output):
            yield 'wheel of the forks', options

    def _compile(self) -> None:
        command = [str(self.env.python), str(ROOT / 'tools' / 'build_mmcv.py'), self.requirement, '--indent', '      ']
        command += ['--constraint', str(CONSTRAINTS), '--log', str(self.env.shell.log)]
        command += ['--work', str(self.env.path / 'mmcv-build')]
        child = subprocess.Popen(command, cwd=ROOT)
        try:
            code = child.wait()
        finally:
            child.terminate()
            child.wait()
        if code:
            raise SetupError('mmcv was not compiled: the lines above say why and what to do.')


TORCHVISION_HOOK = '''"""Written by mmvmamba's set-up: lets torchvision for CUDA be imported beside a PyTorch for CPUs.

Why and how: mmvmamba/torchvision_stubs.py.
"""

import sys


class Finder:
    """Asked first for every module; at torchvision's turn has what it misses defined, and steps aside."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == 'torchvision':
            sys.meta_path.remove(cls)
            from mmvmamba.torchvision_stubs import define_missing_operators

            define_missing_operators()


sys.meta_path.insert(0, Finder)
'''


def mend_torchvision(site: Path) -> None:
    """Let every program of an environment without CUDA import torchvision, and so the toolboxes, whoever asks first.

    Args:
        site: its folder site-packages.
    """
    (site / 'mmvmamba_torchvision_hook.py').write_text(TORCHVISION_HOOK)
    (site / 'mmvmamba_torchvision_hook.pth').write_text('import mmvmamba_torchvision_hook\n')


def set_up(venv: Path, torch_option: str) -> None:
    """Bring the environment at `venv` to the state that the constraints file describes."""
    check_python(sys.version_info[:2])
    variant = choose_torch(torch_option)
    env = Environment(venv)
    stamp = fingerprint(variant, sys.version_info[:2])
    if env.stamp.exists() and env.stamp.read_text() == stamp:
        return
    start = time.monotonic()
    print(f'Setting up {venv} (Python {platform.python_version()}, torch for {variant}); log: {env.shell.log}')
    env.create()
    env.step('build tools', NETWORK, '--upgrade', 'pip', 'setuptools<80', 'wheel', 'ninja', 'psutil')
    env.step(f'{pinned("torch")} ({variant})', NETWORK, *torch_arguments(env, variant))
    fit_torchvision(env, variant)
    Mmcv(env, variant).install()
    env.step('mmvmamba (editable), toolboxes, test tools', NETWORK, '--no-build-isolation', '--editable', '.[test]')
    if variant == 'cpu':
        for site in env.sites():
            mend_torchvision(site)
    env.stamp.write_text(stamp)
    print(f'Environment ready after {time.monotonic() - start:.0f} s.', flush=True)


def ending(work: Callable[[], None], failed: str) -> int:
    """Run `work`; what comes back is the exit code, with every failure said in words."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        work()
    except SetupError as error:
        print(f'\n{failed}.\n{error}', file=sys.stderr)
        return 1
    except OSError as error:
        print(f'\n{failed}.\n{error}\nWhat to do: {remedy(str(error), NETWORK)}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'\n{failed}: interrupted. Run make again: it goes on from here.', file=sys.stderr)
        return 130
    return 0


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
    return ending(lambda: set_up(arguments.venv.absolute(), arguments.torch), 'set-up failed')


if __name__ == '__main__':
    sys.exit(main())
