"""The set-up: what it decides, what it says when something fails, and that it goes on where it was cut off.

pip, compiler and torch are stand-ins: the set-up itself runs before any test can.
"""

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time

import pytest
from tool_runs import ROOT, load_tool

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / 'tools')  # as Python does for a program that lies there
    import setup_env

    build_mmcv = load_tool('build_mmcv')

posix = pytest.mark.skipif(os.name != 'posix', reason='process groups, file locks and scripts of a POSIX system')
TORCH = '{"v": "2.13.0+cpu", "c": null, "cuda": null, "operators": "not available"}'

# Stands in for the environment's Python: notes every call, answers questions, hangs (until there is a file)
# or fails where it is told to.
FAKE = f"""#!/bin/sh
echo "$*" | tr '\\n' ' ' >> "$FAKE_CALLS"; echo >> "$FAKE_CALLS"
if [ -n "$FAKE_HANG" ]; then case "$*" in *"$FAKE_HANG"*)
  for i in $(seq 600); do if [ -e "$FAKE_UNTIL" ]; then break; fi; sleep 0.1; done;; esac; fi
if [ -n "$FAKE_FAIL" ]; then case "$*" in *"$FAKE_FAIL"*) echo "$FAKE_SAYS"; exit 1;; esac; fi
case "$*" in -c*) echo '{TORCH}';; esac
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """An environment whose Python is the stand-in; `fake.calls()` are the commands that it got."""
    environment = setup_env.Environment(tmp_path / 'venv')
    environment.python.parent.mkdir(parents=True)
    environment.python.write_text(FAKE)
    environment.python.chmod(0o755)
    environment.shell.log.write_text('')
    calls = tmp_path / 'calls'
    monkeypatch.setenv('FAKE_CALLS', str(calls))
    monkeypatch.setenv('MMCV_INDEX', '')
    environment.calls = lambda: calls.read_text().splitlines() if calls.exists() else []
    return environment


def test_every_package_of_the_tests_is_pinned():
    pinned = {re.split('[=<>;]', line)[0].strip().lower() for line in setup_env.CONSTRAINTS.read_text().splitlines()}
    text = (ROOT / 'setup.py').read_text()
    for name in ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation', 'numba', 'safetensors'):
        assert name in text
        assert name in pinned


@pytest.mark.parametrize('version', [(3, 9), (3, 13)])
def test_unsupported_python_is_refused_with_the_remedy(version):
    with pytest.raises(setup_env.SetupError, match=r'make PYTHON=python3\.11'):
        setup_env.check_python(version)


def test_unpinned_package_is_an_error():
    with pytest.raises(setup_env.SetupError, match='no-such-package is not in'):
        setup_env.pinned('no-such-package')


def test_auto_takes_cuda_only_where_a_driver_answers(monkeypatch):
    monkeypatch.setattr(setup_env.shutil, 'which', lambda name: None)
    assert setup_env.choose_torch('auto') == 'cpu'
    assert setup_env.choose_torch('cuda') == 'cuda'


def test_stamp_changes_with_what_was_installed():
    assert setup_env.fingerprint('cpu', (3, 11)) == setup_env.fingerprint('cpu', (3, 11))
    assert len({setup_env.fingerprint(*key) for key in (('cpu', (3, 11)), ('cuda', (3, 11)), ('cpu', (3, 12)))}) == 3


# What a step shows


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize('stream', [io.StringIO, Terminal], ids=['piped', 'terminal'])
def test_line_moves_on_a_terminal_alone(stream, monkeypatch):
    monkeypatch.setattr(sys, 'stdout', stream())
    line = setup_env.Line('[3/4] mmcv')
    for done in range(79):
        line.update(done, 78)
    line.end(note=' (compiled)')
    shown = sys.stdout.getvalue()
    assert shown.endswith('0 s (compiled)\n')
    if stream is Terminal:
        assert '\r' in shown
        assert 'file 51 of 78' in shown
    else:
        assert shown == '[3/4] mmcv ... 20/78 39/78 59/78 78/78 0 s (compiled)\n'


# What is said when something fails


@pytest.mark.parametrize(
    'output, words',
    [
        ('OSError: [Errno 28] No space left on device', 'disk is full'),
        ('fatal error: error writing to /tmp/x.s: No space left on device', 'disk is full'),
        ('NewConnectionError(... [Errno 101] Network is unreachable)', 'no network'),
        ('[Errno -3] Temporary failure in name resolution', 'no network'),
        ('c++: fatal error: Killed signal terminated program cc1plus', 'MAX_JOBS=1'),
        ('a.cpp:1:10: fatal error: Python.h: No such file or directory', 'python3-dev'),
        ('OSError: CUDA_HOME environment variable is not set.', 'TORCH=cpu'),
        ('SSLError(SSLCertVerificationError: CERTIFICATE_VERIFY_FAILED)', 'PIP_CERT'),
        ('ERROR: No matching distribution found for torch==2.13.0', 'PYTHON=python3.11'),
        ('[Errno 13] Permission denied', 'VENV='),
        ('something else', 'the advice of the step'),
    ],
)
def test_failures_come_with_a_remedy(output, words):
    assert words in setup_env.remedy(output, 'the advice of the step')


@posix
def test_a_failing_step_shows_pips_words_and_advice(fake, monkeypatch):
    monkeypatch.setenv('FAKE_FAIL', 'torch')
    monkeypatch.setenv('FAKE_SAYS', 'the reason')
    with pytest.raises(setup_env.SetupError, match=r'(?s)the reason.*This step failed: torch.*try again') as caught:
        fake.step('torch', 'try again', 'torch')
    assert str(fake.shell.log) in str(caught.value)


def test_own_full_disk_is_said_too(capsys, monkeypatch):
    def work():
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(signal, 'signal', lambda *_: None)
    assert setup_env.ending(work, 'set-up failed') == 1
    assert 'the disk is full' in capsys.readouterr().err


@posix
@pytest.mark.parametrize('compiler', ['/bin/false', 'no-such-compiler'])
def test_broken_compiler_is_found_before_anything_is_fetched(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv('CXX', compiler)
    build = build_mmcv.Build('onedl-mmcv==2.3.6', tmp_path, setup_env.Shell(tmp_path / 'log'), None)
    with pytest.raises(setup_env.SetupError, match=rf'(?s){compiler} compiles a small program.*install g\+\+'):
        build.check_compiler()


# Interrupted


@posix
@pytest.mark.parametrize(
    'step',
    ['setuptools', ' torch==', '--no-index --no-deps torch', ' torchvision==', ' --force-reinstall', '--editable'],
)
def test_killed_at_any_step_it_goes_on(step, fake, monkeypatch):
    command = [sys.executable, str(ROOT / 'tools/setup_env.py'), '--venv', str(fake.path), '--torch', 'cpu']
    environment = {**os.environ, 'FAKE_HANG': step, 'FAKE_UNTIL': str(fake.path / 'goes on')}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not any(step in call for call in fake.calls()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not fake.stamp.exists()
    again = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    # what the kill left running holds the environment until it ends
    assert 'waiting for it' in again.stdout.readline() + again.stdout.readline()
    (fake.path / 'goes on').touch()
    said = again.communicate(timeout=60)[0]
    assert again.returncode == 0
    assert 'Environment ready' in said
    assert fake.stamp.exists()
    assert not re.search(r'[\r\033]', said)
    number = len(fake.calls())
    subprocess.run(command, check=True, timeout=60)
    assert len(fake.calls()) == number  # all done: nothing is run


@posix
def test_ended_politely_it_takes_its_children_along(fake):
    command = [sys.executable, str(ROOT / 'tools/setup_env.py'), '--venv', str(fake.path), '--torch', 'cpu']
    environment = {**os.environ, 'FAKE_HANG': ' torch=='}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    while not any(' torch==' in call for call in fake.calls()):
        time.sleep(0.02)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143
    os.close(setup_env.hold(fake.path))  # free at once: nothing is left that holds it


@posix
def test_half_installed_packages_are_forgotten(fake):
    site = fake.path / 'lib/python3.11/site-packages'
    for name in ('whole-1.dist-info', 'cut-1.dist-info', '~orch'):
        (site / name).mkdir(parents=True)
    (site / 'whole-1.dist-info/RECORD').touch()
    fake.create()
    assert [path.name for path in site.iterdir()] == ['whole-1.dist-info']


@posix
def test_environment_without_a_working_pip_is_made_anew(fake, monkeypatch):
    monkeypatch.setenv('FAKE_FAIL', '--version')
    made = []
    monkeypatch.setattr(
        setup_env.subprocess,
        'run',
        lambda command, **_: made.append(command) or subprocess.CompletedProcess(command, 0, stdout=''),
    )
    fake.create()
    assert made[0][1:4] == ['-m', 'venv', '--clear']


@posix
def test_second_setup_waits_for_the_first(tmp_path, capsys):
    first = setup_env.hold(tmp_path)
    threading.Timer(0.2, os.close, [first]).start()
    os.close(setup_env.hold(tmp_path))
    assert 'waiting for it' in capsys.readouterr().out


# mmcv


@posix
def test_mmcv_is_not_taken_from_pips_cache_and_known_by_its_torch(fake):
    setup_env.Mmcv(fake, 'cpu').install()
    installs = [call for call in fake.calls() if 'pip install' in call]
    assert len(installs) == 1
    assert '--no-cache-dir' in installs[0]
    setup_env.Mmcv(fake, 'cpu').install()
    assert len([call for call in fake.calls() if 'pip install' in call]) == 1  # there already
    fake.python.write_text(FAKE.replace('2.13.0+cpu', '2.14.0+cpu'))
    setup_env.Mmcv(fake, 'cpu').install()
    assert len([call for call in fake.calls() if 'pip install' in call]) == 2  # another torch


@posix
def test_wheel_without_gpu_operators_does_not_do_for_a_cuda_build(fake, monkeypatch):
    compiled = []
    monkeypatch.setattr(setup_env.Mmcv, '_compile', lambda self: compiled.append(self.requirement))
    setup_env.Mmcv(fake, 'cuda').install()
    assert compiled == [setup_env.pinned('onedl-mmcv')]


@posix
@pytest.mark.parametrize('trouble', ['FAKE_HANG', 'FAKE_FAIL'])
def test_unreachable_index_is_given_up_within_its_limit(trouble, fake, monkeypatch):
    monkeypatch.setenv('MMCV_INDEX', 'https://wheels.invalid')
    monkeypatch.setenv(trouble, 'index versions')
    monkeypatch.setattr(setup_env, 'INDEX_LIMIT', 0.5)
    start = time.monotonic()
    offers = list(setup_env.Mmcv(fake, 'cpu')._offers())
    assert [where for where, _ in offers] == ['wheel from a folder']
    assert time.monotonic() - start < 10
    asked = [call for call in fake.calls() if 'index versions' in call]
    assert 'https://wheels.invalid/cpu-torch2130/simple/' in asked[0]


@posix
def test_index_that_has_the_wheel_is_used(fake, monkeypatch):
    monkeypatch.setenv('MMCV_INDEX', 'https://wheels.invalid')
    wanted = setup_env.pinned('onedl-mmcv').split('==')[1]
    for versions, offered in ((f'{wanted}, 2.3.0', 2), (f'{wanted}.post1', 1)):
        monkeypatch.setenv('FAKE_FAIL', '')
        fake.python.write_text(f'{FAKE}case "$*" in *"index versions"*) echo "Available versions: {versions}";; esac\n')
        assert len(list(setup_env.Mmcv(fake, 'cpu')._offers())) == offered


@posix
def test_cpu_torch_gives_way_to_a_cuda_build(fake, monkeypatch):
    monkeypatch.setattr(setup_env.platform, 'system', lambda: 'Linux')
    assert setup_env.torch_arguments(fake, 'cuda') == [setup_env.pinned('torch'), '--force-reinstall']
    fake.python.write_text(FAKE.replace('"cuda": null', '"cuda": "13.0"'))
    assert setup_env.torch_arguments(fake, 'cuda') == [setup_env.pinned('torch')]


# torchvision


def vision(fake, installed: str) -> None:
    """Let the stand-in answer the question for the installed torchvision."""
    fake.python.write_text(FAKE.replace('"v":', f'"vision": "{installed}", "v":'))


@posix
@pytest.mark.parametrize('without', ['', '--no-index', ' install'], ids=['folder', 'index', 'neither'])
def test_torchvision_for_cpus_is_taken_where_it_can_be_had(without, fake, monkeypatch, capsys):
    monkeypatch.setattr(setup_env.platform, 'system', lambda: 'Linux')
    monkeypatch.setenv('FAKE_FAIL', without)
    setup_env.fit_torchvision(fake, 'cpu')
    installs = [call for call in fake.calls() if 'pip install' in call]
    assert all(f'{setup_env.pinned("torchvision")}+cpu' in call and '--no-deps' in call for call in installs)
    assert ['--no-index' in call for call in installs] == ([True] if not without else [True, False])
    assert ('does not answer' in capsys.readouterr().out) == (without == ' install')


@posix
def test_torchvision_that_fits_stays_and_one_for_cpus_gives_way_to_a_cuda_build(fake, monkeypatch):
    monkeypatch.setattr(setup_env.platform, 'system', lambda: 'Linux')
    version = setup_env.pinned('torchvision').split('==')[1]
    for installed, variant, command in (
        (f'{version}+cpu', 'cpu', ''),
        (f'{version}+cpu', 'cuda', 'uninstall'),
        (version, 'cuda', ''),
        (version, 'cpu', 'install'),
    ):
        vision(fake, installed)
        begin = len(fake.calls())
        setup_env.fit_torchvision(fake, variant)
        ran = [call for call in fake.calls()[begin:] if '-m pip' in call]
        assert [call.split()[2] for call in ran] == ([command] if command else [])


@pytest.mark.parametrize(
    'free, cores, cuda, expected',
    [(24, 2, False, 2), (64, 16, False, 16), (4, 8, False, 3), (2.5, 8, False, 1), (1, 8, False, 1), (10, 8, True, 4)],
)
def test_jobs_fit_into_memory(free, cores, cuda, expected):
    assert build_mmcv.jobs(free, cores, cuda) == expected


def test_memory_and_cores_of_this_machine():
    assert 0 < build_mmcv.memory() < 10_000
    assert 1 <= build_mmcv.cores() <= os.cpu_count()


COMPILER = """#!/bin/sh
case "$*" in
  *--version*) echo "{name}";;
  *-x\\ c++-header*) for last; do :; done; while [ "$1" != -o ]; do shift; done; {make};;
  *invalid-pch*|*-include-pch*) {take};;
esac
"""


@posix
@pytest.mark.parametrize(
    'name, make, take, used',
    [
        ('g++ (GCC) Free Software Foundation', 'touch "$2"', 'exit 0', '-include'),
        ('clang version 18', 'touch "$2"', 'exit 0', '-include-pch'),
        ('g++ (GCC) Free Software Foundation', 'touch "$2"', 'exit 1', ''),  # not taken, as one macro too many does
        ('g++ (GCC) Free Software Foundation', 'exit 1', 'exit 0', ''),
    ],
    ids=['gcc', 'clang', 'not taken', 'not made'],
)
def test_headers_ahead_are_used_only_where_the_compiler_takes_them(name, make, take, used, tmp_path, monkeypatch):
    compiler = tmp_path / 'compiler'
    compiler.write_text(COMPILER.format(name=name, make=make, take=take))
    compiler.chmod(0o755)
    build = build_mmcv.Build('onedl-mmcv==2.3.6', tmp_path, setup_env.Shell(tmp_path / 'log'), None)
    monkeypatch.setattr(build, 'flags', lambda source: ([str(compiler)], ['-O3']))
    assert build.precompile(tmp_path).split(' ')[0] == used


SETUP = """
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension
options = dict(define_macros=[('MMCV_WITH_X', None)], extra_compile_args={'cxx': ['-std=c++17']})
ops = CppExtension('mmcv._ext', ['absent.cpp'], **options)
setup(name='mmcv', ext_modules=[ops], cmdclass={'build_ext': BuildExtension})
"""


@posix
@pytest.mark.skipif(shutil.which('c++') is None, reason='needs a C++ compiler')
def test_flags_are_those_of_the_build_at_its_own_optimisation(tmp_path, monkeypatch):
    monkeypatch.delenv('CPPFLAGS', raising=False)
    (tmp_path / 'setup.py').write_text(SETUP)
    build = build_mmcv.Build('onedl-mmcv==2.3.6', tmp_path, setup_env.Shell(tmp_path / 'log'), None)
    _, flags = build.flags(tmp_path)
    assert {'-std=c++17', '-DMMCV_WITH_X', '-DTORCH_EXTENSION_NAME=_ext'} <= set(flags)
    of_python = shlex.split(sysconfig.get_config_var('CFLAGS'))
    assert [flag for flag in flags if flag.startswith('-O')] == [flag for flag in of_python if flag.startswith('-O')]
    assert [flag for flag in flags if flag.startswith('-g')][-1] == '-g0'


def test_flags_that_torch_does_not_write_mean_the_plain_build(tmp_path):
    build = build_mmcv.Build('onedl-mmcv==2.3.6', tmp_path, setup_env.Shell(tmp_path / 'log'), None)
    assert build.precompile(tmp_path) == ''  # no sources there: no build.ninja either
    assert 'no precompiled header' in (tmp_path / 'log').read_text()


def test_build_for_another_torch_starts_anew(tmp_path, monkeypatch):
    fetched = []

    def fetch(what, *arguments, **options):
        fetched.append(arguments)
        folder = tmp_path / 'fetched'
        (folder / 'mmcv').mkdir(parents=True)
        with build_mmcv.tarfile.open(folder / 'mmcv.tar.gz', 'w:gz') as archive:
            archive.add(folder / 'mmcv', 'onedl_mmcv-2.3.6')

    build = build_mmcv.Build('onedl-mmcv==2.3.6', tmp_path, setup_env.Shell(tmp_path / 'log'), None)
    monkeypatch.setattr(build, 'pip', fetch)
    assert build.sources() == build.sources() == tmp_path / 'source'
    assert len(fetched) == 1
    (tmp_path / 'source/object.o').touch()
    (tmp_path / 'made_for').write_text('another torch')
    build.sources()
    assert len(fetched) == 2
    assert not (tmp_path / 'source/object.o').exists()
