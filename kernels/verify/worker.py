"""A process of its own for the first run of a kernel: an illegal access leaves a CUDA context unusable, only there.

It reads a line of JSON a check and answers with one. It ends when its input ends, when whoever started it is gone, and
when nothing was asked for a while, so that its memory is given back.
"""

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time

from . import probe
from .verdicts import Verdict, machine

TIMEOUT = 600.0
"""Seconds that one check may take, compilation included."""

START = 120.0
"""Seconds that the process may take to import what it needs."""

IDLE = 30.0
"""Seconds after which a worker that is asked nothing ends."""

_ENDED_BY_OTHERS = (-2, -9, -15)
"""Codes after SIGINT, SIGKILL (also the system's, when it lacks memory) and SIGTERM, which no kernel causes."""

_SERVE = 'import sys; sys.path[:] = {path}; from {module} import serve; serve()'
"""What the process runs; by itself it would look into the current folder first."""

command: list[str] | None = None
"""How a worker is started, if not by this module: tests give it a device that is no GPU."""


class Worker:
    """The parent's end: starts the process when it is first needed, and a new one after a crash."""

    def __init__(self):
        self._process = None
        self._answers: queue.Queue = queue.Queue()
        self._log = None
        self.lock = threading.Lock()

    def check(self, call: probe.Call, plan: list, timeout: float | None = None) -> Verdict:
        """The verdict of `probe.check` in the other process; a crash or silence there is a failed one.

        A process that cannot even start says nothing about kernels: that verdict is not to be kept.
        """
        with self.lock:
            request = json.dumps([call, plan, machine(_device(call))])
            try:
                return self._ask(request, timeout or TIMEOUT)
            except BaseException:  # interrupted: the answer would be taken for the next one's
                self.close()
                raise

    def _ask(self, request: str, timeout: float) -> Verdict:
        for attempt in range(2):
            reason = self._start()
            if reason is not None:
                break
            reason = self._send(request)
            if reason is None:
                answer, silent = self._wait(timeout)
                # an idle worker may have ended while it was asked
                if answer is not None or silent or self._code() != 0 or attempt:
                    return self._verdict(answer, timeout)
            self.close()
        self.close()
        return Verdict(False, f'the process that checks kernels does not run: {reason}', kept=False)

    def _start(self) -> str | None:
        if self._process is not None and self._process.poll() is None:
            return None
        self.close()
        environment = dict(os.environ, MMVMAMBA_VERIFY='off')
        environment.pop('MMVMAMBA_BACKEND', None)
        try:
            self._log = tempfile.TemporaryFile('w+', errors='replace')  # noqa: SIM115 (`close` closes it)
            self._process = subprocess.Popen(
                command or [sys.executable, '-c', _SERVE.format(path=sys.path, module=__name__)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                text=True,
            )
        except OSError as error:
            return str(error)
        self._answers = queue.Queue()
        threading.Thread(target=_forward, args=(self._process.stdout, self._answers), daemon=True).start()
        answer, silent = self._wait(START)
        if answer != 'ready':
            return f'not ready within {START:g} s' if silent else self._last_words()
        return None

    def _send(self, request: str) -> str | None:
        try:
            self._process.stdin.write(request + '\n')
            self._process.stdin.flush()
        except OSError as error:
            return str(error)
        return None

    def _wait(self, timeout: float) -> tuple[object, bool]:
        """The next answer, or None if the process ended or, as the second value says, was silent for so long."""
        try:
            return self._answers.get(timeout=timeout), False
        except queue.Empty:
            return None, True

    def _code(self) -> int | None:
        """How the process ended, if it did: its pipe closes a moment before."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        return self._process.poll()

    def _verdict(self, answer, timeout: float) -> Verdict:
        if isinstance(answer, dict):
            if 'impossible' in answer:
                return Verdict(False, answer['impossible'], kept=False)
            verdict = Verdict.parse(answer)
            if not verdict.passed:
                self.close()  # the device may be in any state there
            return verdict
        if self._process.poll() is None:
            self.close()
            return Verdict(False, f'no answer within {timeout:g} s', seconds=timeout)
        code, words = self._code(), self._last_words()
        self.close()
        kept = code not in _ENDED_BY_OTHERS
        return Verdict(False, f'the process that checked it ended with code {code}: {words}', kept=kept)

    def _last_words(self) -> str:
        self._log.seek(0)
        return ' '.join(self._log.read()[-400:].split()) or 'it said nothing'

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None


_idle: list[Worker] = []
_all: list[Worker] = []


def check(call: probe.Call, plan: list) -> Verdict:
    """`Worker.check` by one of this process's workers: there are as many as threads have ever asked at once."""
    try:
        own = _idle.pop()
    except IndexError:
        own = Worker()
        _all.append(own)
    try:
        return own.check(call, plan)
    finally:
        _idle.append(own)


@atexit.register
def _close() -> None:
    for own in _all:
        own.close()


def _device(call: probe.Call):
    import torch

    return torch.device(call.device)


def _forward(pipe, answers: queue.Queue) -> None:
    """Lines of a pipe, decoded, and None at its end; what is no JSON is no answer."""
    with contextlib.suppress(ValueError, OSError):
        for line in pipe:
            with contextlib.suppress(ValueError):  # what modules print when they are imported
                answers.put(json.loads(line))
    answers.put(None)


def serve() -> None:
    """The other process: answer checks until there are no more."""
    channel = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever prints must not answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process

    def answer(value) -> None:
        channel.write(json.dumps(value) + '\n')
        channel.flush()

    deadline = [time.monotonic() + IDLE]
    threading.Thread(target=_end_when_idle, args=(deadline, os.getppid()), daemon=True).start()
    answer('ready')
    for line in sys.stdin:
        deadline[0] = None
        values, plan, asked = json.loads(line)
        call = probe.Call.parse(values)
        reason = _why_impossible(_device(call), asked)
        answer(probe.check(call, plan).as_json() if reason is None else dict(impossible=reason))
        deadline[0] = time.monotonic() + IDLE


def _why_impossible(device, asked: dict) -> str | None:
    """Why nothing that runs here would say anything about kernels."""
    import torch

    try:
        here = machine(device)
        if device.type == 'cuda':
            torch.cuda.set_device(device)  # no memory is taken of any other
            torch.ones(1, device=device).sum().item()
    except Exception as error:  # no such device, one for a single process only, one without memory
        return f'the process that checks kernels cannot use {device}: {type(error).__name__}: {error}'
    changed = {name: (value, here.get(name)) for name, value in asked.items() if here.get(name) != value}
    if changed:
        return (
            f'the process that checks kernels finds other things than this one: {changed}; start again if files were '
            'changed meanwhile'
        )
    return None


def _end_when_idle(deadline: list, parent: int) -> None:
    while True:
        time.sleep(0.5)
        if deadline[0] is not None and time.monotonic() > deadline[0]:
            os._exit(0)
        if os.getppid() != parent:  # killed: nobody waits for a check that may never end
            os._exit(1)
