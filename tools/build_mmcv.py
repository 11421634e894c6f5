"""Compile mmcv's operators against the torch of this environment, and install them: minutes instead of half an hour.

Every file of mmcv parses PyTorch's headers. They are compiled once, ahead, with the very flags of the build (GCC and
Clang; elsewhere, and where the compiler does not take them, the plain build), and no debug information is written. The
optimisation stays as it is. What is compiled is kept until mmcv is installed, so an interrupted build goes on.

Needs torch, setuptools below 80, wheel, ninja and a C++ compiler, and for a CUDA build of torch the CUDA toolkit.

Example: python tools/build_mmcv.py onedl-mmcv==2.3.6
"""

import argparse
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import warnings
from pathlib import Path

from setup_env import Line, SetupError, Shell, ending, hold

LARGEST = 2.2  # GB of memory that the largest file takes to compile
OTHERS = 0.8  # and every other one
CUDA_FILE = 2.5  # a file of GPU code
NO_DEBUG = '-g0'
ADVICE = (
    'mmcv compiles its operators: it needs a C++ compiler and the headers of this Python (Debian, Ubuntu: apt-get '
    'install g++ python3-dev; Fedora: dnf install gcc-c++ python3-devel; macOS: xcode-select --install). Then run it '
    'again: what is compiled is kept. A wheel of mmcv in a folder named by PIP_FIND_LINKS that fits this Python and '
    'torch is used instead of compiling.'
)

# Run in the folder of mmcv's sources: builds mmcv's own extension from one trivial file, for the flags alone.
ONE_FILE = """
import runpy, setuptools, sys
told = {}
setuptools.setup = lambda **options: told.update(options)
runpy.run_path('setup.py', run_name='__main__')
(extension,) = told['ext_modules']
extension.sources = [sys.argv[1]]
build = setuptools.Distribution(
    {'name': 'probe', 'ext_modules': [extension], 'cmdclass': told['cmdclass']}
).get_command_obj('build_ext')
build.build_temp = build.build_lib = sys.argv[2]
build.ensure_finalized()
build.run()
"""


def installed_torch():
    """The torch to compile against; numpy, which it asks for in a warning, is not needed for that."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        import torch
    return torch


def memory() -> float:
    """GB of memory that are free to use, within the limit of this container."""
    system, group = Path('/proc/meminfo'), Path('/sys/fs/cgroup')
    if not system.exists():
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30 / 2
    free = int(re.search(r'MemAvailable:\s+(\d+)', system.read_text()).group(1)) / 2**20
    limit = (group / 'memory.max').read_text().strip() if (group / 'memory.max').exists() else 'max'
    if limit.isdigit():
        free = min(free, (int(limit) - int((group / 'memory.current').read_text())) / 2**30)
    return free


def jobs(free: float, cores: int, cuda: bool) -> int:
    """How many files to compile at a time: as many as there are cores, unless memory would run out."""
    if cuda:
        return max(1, min(cores, int(free / CUDA_FILE)))
    return max(1, min(cores, 1 + int((free - LARGEST) / OTHERS)))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


class Build:
    """mmcv's build in a folder of its own, step by step, with one log."""

    def __init__(self, requirement: str, work: Path, shell: Shell, constraint: Path | None):
        self.requirement = requirement
        self.name = requirement.split('==')[0]
        self.work = work
        self.shell = shell
        self.constraint = [] if constraint is None else ['-c', str(constraint)]

    def pip(self, what: str, *arguments: str, line: Line | None = None, **options) -> None:
        command = [sys.executable, '-m', 'pip', *arguments]
        succeeded, output = self.shell.run(command, line, **options)
        if not succeeded:
            if line:
                line.end(False)
            raise self.shell.failure(what, output, ADVICE)

    def sources(self) -> Path:
        """The folder of mmcv's sources, fetched once; other files of a build for another torch are thrown away."""
        torch = installed_torch()
        key = f'{self.requirement} {torch.__version__} {torch.version.cuda} {sys.version_info[:2]}'
        made_for = self.work / 'made_for'
        folder = self.work / 'source'
        if made_for.exists() and made_for.read_text() == key:
            return folder
        for path in self.work.iterdir():
            if path != self.shell.log:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        fetch = ('--no-deps', '--no-binary', self.name, '--no-build-isolation', *self.constraint)
        self.pip('sources of mmcv', 'download', *fetch, '--dest', str(self.work / 'fetched'), self.requirement)
        (archive,) = (self.work / 'fetched').glob('*.tar.gz')
        with tarfile.open(archive) as file:
            safe = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}
            file.extractall(self.work / 'unpacked', **safe)
        (unpacked,) = (self.work / 'unpacked').iterdir()
        unpacked.rename(folder)
        made_for.write_text(key)
        return folder

    def check_compiler(self) -> str:
        """Compile a small program against this Python's headers; returns the compiler."""
        compiler = os.environ.get('CXX', 'c++')
        program = self.work / 'program.cpp'
        program.write_text(
            '#include <Python.h>\n#include <optional>\nint main() { return std::optional<int>(0).value(); }\n'
        )
        command = [*shlex.split(compiler), '-std=c++17', f'-I{sysconfig.get_path("include")}', '-c', str(program)]
        try:
            succeeded, output = self.shell.run([*command, '-o', str(self.work / 'program.o')])
        except OSError as error:
            succeeded, output = False, f'{compiler}: {error}'
        if not succeeded:
            raise self.shell.failure(f'{compiler} compiles a small program', output, ADVICE)
        return compiler

    def flags(self, source: Path) -> tuple[list[str], list[str]]:
        """The compiler and its flags for mmcv's C++ files, as torch writes them for a build of one file."""
        folder = self.work / 'one_file'
        folder.mkdir(exist_ok=True)
        (folder / 'probe.cpp').write_text('int probe;\n')
        command = [sys.executable, '-c', ONE_FILE, str(folder / 'probe.cpp'), str(folder)]
        self.shell.run(command, cwd=source, env=self.variables())
        written = dict(
            line.split(' = ', 1) for line in (folder / 'build.ninja').read_text().splitlines() if ' = ' in line
        )
        return shlex.split(written['cxx']), shlex.split(f'{written["cflags"]} {written.get("post_cflags", "")}')

    def precompile(self, source: Path) -> str:
        """Compile PyTorch's headers ahead; returns the flags that use them, none where that does not work."""
        header = self.work / 'pytorch.h'
        try:
            compiler, flags = self.flags(source)
            version = subprocess.run([*compiler, '--version'], capture_output=True, text=True).stdout
            clang = 'clang' in version
            compiled = header.with_suffix('.h.pch' if clang else '.h.gch')
            use = ['-include-pch', str(compiled)] if clang else ['-include', str(header), '-Werror=invalid-pch']
            probe = [*compiler, *flags, *use, '-fsyntax-only', str(self.work / 'one_file' / 'probe.cpp')]
            if compiled.exists() and self.shell.run(probe)[0]:  # of the build that goes on
                return shlex.join(use)
            header.write_text('#include <torch/types.h>\n')
            make = [*compiler, *flags, '-x', 'c++-header', str(header), '-o', str(compiled)]
            if self.shell.run(make)[0] and self.shell.run(probe)[0]:
                return shlex.join(use)
        except (OSError, KeyError, ValueError) as error:
            with self.shell.log.open('a') as log:
                log.write(f'no precompiled header: {error!r}\n')
        return ''

    @staticmethod
    def variables(use: str = '') -> dict[str, str]:
        """The environment of a compilation: no debug information, and what `precompile` returned.

        CPPFLAGS are added to the flags that Python was built with, by every setuptools; newer ones let CFLAGS replace
        them, the optimisation among them.
        """
        flags = filter(None, (os.environ.get('CPPFLAGS'), NO_DEBUG, use))
        return {**os.environ, 'CPPFLAGS': ' '.join(flags)}

    def compile(self, source: Path, use: str, line: Line) -> Path:
        """Build the wheel; what an earlier build compiled is not compiled again."""
        torch = installed_torch()
        cuda = torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'
        number = os.environ.get('MAX_JOBS') or str(jobs(memory(), cores(), cuda))
        variables = {**self.variables(use), 'MAX_JOBS': number}
        out = self.work / 'wheel'
        shutil.rmtree(out, ignore_errors=True)

        def progress() -> tuple[int, int]:
            plans = list(source.glob('build/temp*/build.ninja'))
            total = sum(plan.read_text().count('\nbuild ') for plan in plans)
            return sum(1 for _ in source.glob('build/temp*/**/*.o')), total

        self.pip(
            'mmcv, compiling',
            *(
                'wheel',
                '-v',
                '--no-deps',
                '--no-build-isolation',
                '--no-cache-dir',
                '--wheel-dir',
                str(out),
                str(source),
            ),
            line=line,
            progress=progress,
            env=variables,
        )
        (wheel,) = out.glob('*.whl')
        return wheel


def processor_seconds() -> float:
    """Processor time of the commands that ended so far."""
    import resource  # not on Windows

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def build(arguments: argparse.Namespace) -> None:
    """Fetch, compile and install, a line for each."""
    work = arguments.work.absolute()
    if re.search(r'\s', str(work)):  # the compiler's flags pass through make-like files
        work = Path(tempfile.gettempdir()) / f'mmvmamba-{hashlib.sha256(str(work).encode()).hexdigest()[:12]}'
    work.mkdir(parents=True, exist_ok=True)
    shell = Shell(arguments.log or work / 'build.log', hold(work))
    this = Build(arguments.requirement, work, shell, arguments.constraint)
    line = Line(f'{arguments.indent}sources and compiler')
    try:
        compiler = this.check_compiler()
        source = this.sources()
    except SetupError:
        line.end(False)
        raise
    line.end(note=f' ({compiler})')
    line = Line(f"{arguments.indent}PyTorch's headers, ahead")
    use = this.precompile(source)
    line.end(note='' if use else ' (this compiler does not take them: three times slower without)')
    line = Line(f'{arguments.indent}compiling')
    wheel = this.compile(source, use, line)
    line.end(note=f' ({processor_seconds():.0f} s of processor time)')
    this.pip('installing mmcv', 'install', '--no-deps', '--force-reinstall', '--no-cache-dir', str(wheel))
    shutil.rmtree(work)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'requirement', metavar='REQUIREMENT', help='onedl-mmcv==VERSION, or mmcv==VERSION (the original)'
    )
    work = Path(sys.prefix) / 'mmcv-build'
    parser.add_argument('--work', type=Path, default=work, help='folder of the build (default: %(default)s)')
    parser.add_argument('--constraint', type=Path, help="pip's constraints file")
    parser.add_argument('--log', type=Path, help='log to append to (default: build.log in the folder of the build)')
    parser.add_argument('--indent', default='', help='what the printed lines begin with')
    arguments = parser.parse_args(argv)
    if platform.system() == 'Windows':
        parser.error('on Windows let pip compile it: pip install --no-build-isolation --no-cache-dir REQUIREMENT')
    return ending(lambda: build(arguments), 'mmcv was not compiled')


if __name__ == '__main__':
    sys.exit(main())
