"""The whole way on a small scale: make the shapes dataset, train on it, evaluate, draw. What `make demo` runs.

Prints a page: a line a step, which moves on a terminal, and the metrics. Everything that the tools print is in the log
that the last lines name.

Example: python tools/demo.py --config configs/demo/upernet_vmamba_shapes.py
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

TOOLS = Path(__file__).resolve().parent
DATA = Path('data/shapes')  # the demo configs name it
CLASSIFICATION = ('--classification', '--train', 2500, '--val', 250, '--size', 72)  # pictures of its own
DETECTION = 'configs/demo/maskrcnn_vmamba_shapes.py'
STEPS = 3
BAR = 24  # characters
TAIL = 25  # lines of the log that are shown when a step fails
WIDTH = 200  # and how much of each
METRICS = {
    'mAP': 'AP',
    'mAP_50': 'AP50',
    'mAP_75': 'AP75',
    'mAP_s': 'small',
    'mAP_m': 'medium',
    'mAP_l': 'large',
    'mIoU': 'mIoU (%)',
    'aAcc': 'pixels (%)',
    'mAcc': 'classes (%)',
    'top1': 'right (%)',
}
ROWS = {'coco/bbox_': 'boxes', 'coco/segm_': 'masks', 'accuracy/': 'images', '': 'pixels'}
# The toolboxes' log: 'Epoch(train)  [2][10/60] ... eta: 0:01:02 ... loss: 1.5', 'Iter(train) [ 10/600] ...'
ITERATION = re.compile(r'(?:Epoch|Iter)\((train|val|test)\)\s+(?:\[\s*(\d+)\])?\[\s*(\d+)/(\d+)\]')
NUMBER = re.compile(r'\b(eta|loss): (\S+)')


class Progress(NamedTuple):
    """How far a step is."""

    share: float = 0.0  # of the whole step
    words: str = 'starting'


def read_progress(line: str, epochs: int) -> Progress | None:
    """What a line of the toolboxes' log says about progress; None where it says nothing.

    Args:
        line: of the log.
        epochs: that the training lasts; 0 where it is counted in iterations.
    """
    found = ITERATION.search(line)
    if not found:
        return None
    stage, epoch, done, total = found.group(1), int(found.group(2) or 1), int(found.group(3)), int(found.group(4))
    if stage == 'val':
        return Progress(-1.0, f'evaluating, image batch {done} of {total}')
    if stage == 'train' and epochs:
        done, total = (epoch - 1) * total + done, epochs * total
    said = dict(NUMBER.findall(line))
    words = [f'{"iteration" if stage == "train" else "image batch"} {done} of {total}']
    words += [f'loss {float(said["loss"]):.3g}'] if 'loss' in said else []
    words += [f'{said["eta"]} left'] if 'eta' in said else []
    return Progress(done / total, ', '.join(words))


class Step:
    """A step's line: a bar that moves on a terminal; elsewhere a plain line at its end and at every quarter."""

    def __init__(self, number: int, name: str):
        self.title = f'[{number}/{STEPS}] {name:<22}'
        self.progress = Progress()
        self.start = time.monotonic()
        self.moving = sys.stdout.isatty()
        self._quarter = 0
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        if self.moving:
            self._ticker.start()
        else:
            print(f'{self.title} ...', flush=True)

    def update(self, progress: Progress) -> None:
        """Take what is known; an evaluation amid training leaves the bar where it is."""
        share = progress.share if progress.share >= 0 else self.progress.share
        self.progress = Progress(share, progress.words)
        if not self.moving and int(share * 4) > self._quarter and share < 1:
            self._quarter = int(share * 4)
            print(f'{self.title} {self._bar()} {progress.words}', flush=True)

    def _bar(self) -> str:
        full = round(BAR * self.progress.share)
        return f'[{"#" * full}{"." * (BAR - full)}]'

    def _tick(self) -> None:
        while not self._over.wait(0.5):
            clock = f'{time.monotonic() - self.start:.0f} s'
            line = f'{self.title} {self._bar()} {clock}, {self.progress.words}'
            print(f'\r\033[K{line[: shutil.get_terminal_size().columns - 1]}', end='', flush=True)

    def end(self, words: str) -> None:
        """Leave the step's last words, with its time."""
        self._over.set()
        if self.moving:
            self._ticker.join()
            print('\r\033[K', end='')
        print(f'{self.title} {words} ({time.monotonic() - self.start:.0f} s)', flush=True)


class Demo:
    """The steps, with one log for what they print."""

    def __init__(self, work_dir: Path, epochs: int = 0):
        self.epochs = epochs
        self.log = work_dir / 'demo.log'
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text('')
        self._number = 0

    def skip(self, name: str, why: str) -> None:
        """A step that needs nothing done."""
        self._number += 1
        print(f'[{self._number}/{STEPS}] {name:<22} {why}', flush=True)

    def run(self, name: str, tool: str, *arguments: object) -> None:
        """Run one of the tools, its output into the log; stop where it fails, with the log's last lines."""
        self._number += 1
        command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
        step = Step(self._number, name)
        lines = []
        with self.log.open('a') as log:
            log.write(f'\n$ {shlex.join(command)}\n')
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace'
            ) as process:
                try:
                    for line in process.stdout:
                        log.write(line)
                        log.flush()
                        lines = [*lines[1 - TAIL :], line.rstrip()[:WIDTH]]
                        progress = read_progress(line, self.epochs)
                        if progress:
                            step.update(progress)
                except KeyboardInterrupt:
                    process.terminate()
                    step.end('interrupted')
                    sys.exit(130)
        step.end('done' if process.returncode == 0 else 'failed')
        if process.returncode:
            print('\n'.join(lines))
            sys.exit(f'\n{tool} failed with exit code {process.returncode}; the lines above say why.\nlog: {self.log}')


def table(metrics: dict) -> list[str]:
    """The toolboxes' metrics of one test as the rows of a table."""
    shown = []
    for prefix, row in ROWS.items():
        known = {name: metrics[prefix + key] for key, name in METRICS.items() if prefix + key in metrics}
        known = {name: value for name, value in known.items() if value >= 0}  # COCO's -1: no such objects
        if known and not shown:
            shown.append(' ' * 10 + ''.join(f'{name:>12}' for name in known))
        if known:
            shown.append(f'  {row:<8}' + ''.join(f'{value:>12.4g}' for value in known.values()))
    return shown


def newest(folder: Path, pattern: str) -> Path:
    """The file below `folder` that was written last."""
    return max(folder.rglob(pattern), key=lambda path: path.stat().st_mtime)


def where_drawn(pictures: Path) -> str:
    """Where to look, and at what."""
    for overview in pictures.glob('right_and_wrong.png'):
        return f'{overview}  (each image: {pictures})'
    drawn = [path for path in pictures.rglob('*.*g') if path.is_file()]
    return f'{drawn[0].parent}  (left: ground truth, right: predictions)' if drawn else f'none in {pictures}'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default=DETECTION, help='a config of configs/demo (default: %(default)s)')
    parser.add_argument('--work-dir', type=Path, help='where everything goes (default: work_dirs/<name of the config>)')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='changes to the config')
    arguments = parser.parse_args(argv)
    work_dir = arguments.work_dir or Path('work_dirs') / Path(arguments.config).stem
    pictures = work_dir / 'pictures'
    options = ['--cfg-options', *arguments.cfg_options] if arguments.cfg_options else []
    start = time.monotonic()
    epochs = [int(o.partition('=')[2]) for o in arguments.cfg_options if o.startswith('train_cfg.max_epochs=')]
    cfg = Config.fromfile(arguments.config, import_custom_modules=False)
    epochs = epochs or [cfg.train_cfg.get('max_epochs') or 0]
    demo = Demo(work_dir, epochs[0])
    print(f'{arguments.config}: three steps, in {work_dir}', flush=True)

    classifies = cfg.default_scope == 'mmpretrain'
    data = DATA / 'cls' if classifies else DATA
    if (data / 'classes.json').exists():
        demo.skip('data', f'in {data} already')
    else:
        demo.run('data', 'make_shapes_dataset.py', DATA, '--overwrite', *(CLASSIFICATION if classifies else ()))
    demo.run('training', 'train.py', arguments.config, '--work-dir', work_dir, *options)
    checkpoint = Path((work_dir / 'last_checkpoint').read_text().strip())
    test = (arguments.config, checkpoint, '--work-dir', work_dir / 'test', '--show-dir', pictures)
    demo.run('evaluation, pictures', 'test.py', *test, *options)

    metrics = json.loads(newest(work_dir / 'test', '*.json').read_text())
    print('\nOn held-out images:')
    print('\n'.join(table(metrics)))
    print(f'\nDone in {(time.monotonic() - start) / 60:.1f} minutes.')
    print(f'pictures:   {where_drawn(pictures)}')
    print(f'log:        {demo.log}')
    print(f'checkpoint: {checkpoint}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
