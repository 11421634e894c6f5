"""How tests of Triton kernels get their interpreter on a machine without a GPU: a pytest plugin.

Triton looks for `TRITON_INTERPRET=1` when a kernel is defined, and the same session compiles the kernels as well. So
tests marked `interpreter` are collected here like any other, run in a process that has it switched on, one for every
file, and are reported here one by one. These processes start with the session, at low priority, and use the time that
the other tests leave idle; their tests come last. With a GPU, or where the interpreter is on already, the marker does
nothing and the tests run in place.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

_REPORTS = 'MMVMAMBA_TEST_REPORTS'  # to a process with the interpreter: the file for its reports
_EMULATOR = 'ptxsim.pytest_plugin'  # takes the place of a GPU

interpreted = os.environ.get('TRITON_INTERPRET') == '1'
"""Whether the marked tests run in the interpreter, here or in another process."""


def register(config: pytest.Config) -> None:
    """Install what this session needs; called by `tests/conftest.py`."""
    config.addinivalue_line('markers', "interpreter: runs on a GPU, or in a process with Triton's interpreter")
    global interpreted
    if _REPORTS in os.environ:
        config.pluginmanager.register(_Reporter(config, Path(os.environ[_REPORTS])))
    elif not (interpreted or torch.cuda.is_available() or config.pluginmanager.hasplugin(_EMULATOR)):
        interpreted = True
        config.pluginmanager.register(_Delegation())


class _Reporter:
    """In a process with the interpreter: hands every report on, a line of JSON each."""

    def __init__(self, config: pytest.Config, path: Path):
        self._config = config
        self._file = path.open('w')
        self._parent = os.getppid()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if os.getppid() != self._parent:
            pytest.exit('the session that asked for these tests was killed')
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._file.write(json.dumps(data) + '\n')
        self._file.flush()


class _Child:
    """A process with the interpreter that runs the tests of one file.

    Args:
        nodes: ids of the tests.
        folder: where its log and its reports go.
    """

    def __init__(self, nodes: list[str], folder: Path, config: pytest.Config):
        self._config = config
        self._log = folder / 'log'
        self._reports = folder / 'reports'
        self._reports.touch()
        self._lines = self._reports.open()
        self._line = ''
        command = [
            sys.executable,
            '-m',
            'pytest',
            '-q',
            '-p',
            'no:cacheprovider',
            f'--rootdir={config.rootpath}',
            *nodes,
        ]
        environment = {**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1', _REPORTS: str(self._reports)}
        with self._log.open('w') as log:
            self.process = subprocess.Popen(
                [*(['nice'] if os.name == 'posix' else []), *command],
                cwd=config.rootpath,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Wait for the reports of the next test, which is `item`; one that says so if the process ended before."""
        found = []
        while not found or found[-1].when != 'teardown':
            ended = self.process.poll() is not None  # looked at first: what it wrote before is still to be read
            self._line += self._lines.readline()
            if self._line.endswith('\n'):
                data, self._line = json.loads(self._line), ''
                report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
                if isinstance(report.longrepr, list):  # where and why it was skipped: a tuple before JSON
                    report.longrepr = tuple(report.longrepr)
                found.append(report)
                if found[-1].nodeid != item.nodeid:
                    return [self._missing(item, f'reported {found[-1].nodeid} instead')]
            elif ended:
                return [*found, self._missing(item, f'ended with {self.process.returncode} before this test')]
            else:
                time.sleep(0.1)
        return found

    def _missing(self, item: pytest.Item, why: str) -> pytest.TestReport:
        text = f"the process with Triton's interpreter {why}; its output ends:\n{self._log.read_text()[-6000:]}"
        return pytest.TestReport(item.nodeid, item.location, {}, 'failed', text, 'call')


class _Delegation:
    """In a session without interpreter and GPU: starts the processes and reports what they report."""

    def __init__(self):
        self._children: dict[Path, _Child] = {}
        self._folder = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=_is_delegated)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        files: dict[Path, list[str]] = {}
        for item in session.items:
            if _is_delegated(item):
                files.setdefault(item.path, []).append(item.nodeid)
        if not files or session.config.option.collectonly:
            return
        self._folder = tempfile.TemporaryDirectory()
        for path, nodes in files.items():
            folder = Path(self._folder.name, path.stem)
            folder.mkdir()
            self._children[path] = _Child(nodes, folder, session.config)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if not _is_delegated(item):
            return None
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._children[item.path].reports(item):
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        item.session._setupstate.teardown_exact(nextitem)  # what the tests before this one left for it
        return True

    def pytest_sessionfinish(self) -> None:
        for child in self._children.values():
            child.process.kill()
            child.process.wait()
        if self._folder is not None:
            self._folder.cleanup()


def _is_delegated(item: pytest.Item) -> bool:
    return item.get_closest_marker('interpreter') is not None
