"""Train with tools/train.py, kill it again and again, resume each time; print as JSON what was killed.

Imports once and forks for each attempt, so an attempt starts in seconds. Half of the kills come at a random moment,
half while a checkpoint is being written. Each lets at most 13 iterations pass.

Example: python tests/kill_runs.py 20 WORK_DIR configs/demo/upernet_vmamba_shapes.py --cfg-options ...
"""

import contextlib
import importlib
import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

from tool_runs import ROOT, load_tool


def load_train():
    """tools/train.py as a module, with what it will import later imported now."""
    module = load_tool('train')
    for name in ('mmdet.models', 'mmseg.models', 'mmvmamba.models'):
        importlib.import_module(name)
    return module


def start(train, arguments, log) -> int:
    """Fork a training in a process group of its own; returns its id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    with log.open('ab') as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    code = 1
    with contextlib.suppress(BaseException):  # a fork must never run the parent's code
        try:
            code = train.main(arguments)
        except Exception as error:
            print(f'{type(error).__name__}: {error}', flush=True)
            raise
    sys.stdout.flush()
    os._exit(code)


def iterations(work_dir: Path) -> int:
    """How many iterations all attempts together have logged."""
    return len(re.findall(rb'(?:Iter|Epoch)\(train\) ', (work_dir / 'output.txt').read_bytes()))


def writings(work_dir: Path) -> frozenset[int]:
    """Tells one half-written checkpoint from another, by when it was begun."""
    found = set()
    for path in work_dir.glob('*.pth.tmp'):
        with contextlib.suppress(FileNotFoundError):
            found.add(path.stat().st_ino)
    return frozenset(found)


def kill_or_wait(child: int, work_dir: Path, when: str | None, rng: random.Random) -> tuple[bool, int]:
    """Wait for an attempt, and kill it when its time has come: whether it was killed, and its exit code."""
    signs = {'any moment': iterations, 'saving': writings}.get(when)
    before = signs(work_dir) if signs else None
    wanted, delay = (rng.randrange(13), 0.2) if when == 'any moment' else (rng.randrange(1, 4), 0.003)
    seen, last, due = 0, before, float('inf')
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return False, os.waitstatus_to_exitcode(status)
        if signs and due == float('inf'):
            now = signs(work_dir)
            seen, last = seen + (now != last), now
            if (now - before if when == 'any moment' else seen) >= wanted:
                due = time.monotonic() + rng.uniform(0, delay)
        if time.monotonic() >= due:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True, -signal.SIGKILL
        time.sleep(0.0002 if when == 'saving' else 0.002)


def main(kills: int, work_dir: Path, arguments: list[str]) -> dict:
    rng, train = random.Random(0), load_train()
    work_dir.mkdir(parents=True, exist_ok=True)
    report = {'kills': [], 'attempts': 0, 'half-written files left': 0}
    while True:
        report['attempts'] += 1
        when = ('any moment', 'saving')[len(report['kills']) % 2] if len(report['kills']) < kills else None
        (work_dir / 'output.txt').touch()
        child = start(train, [*arguments, '--work-dir', str(work_dir), '--resume'], work_dir / 'output.txt')
        killed, code = kill_or_wait(child, work_dir, when, rng)
        if not killed:
            report['exit code'] = code
            return report
        report['kills'].append(when)
        report['half-written files left'] += bool(list(work_dir.glob('*.tmp')))


if __name__ == '__main__':
    os.chdir(ROOT)
    print(json.dumps(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])))
