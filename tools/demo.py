"""The whole way on a small scale: make the shapes dataset, train on it, evaluate, draw. What `make demo` runs.

Of a masked autoencoder the way is longer: pretrain, look at reconstructions, fine-tune a classifier, train a detector.

Prints a page: a line a step, which moves on a terminal, and the metrics. Everything that the tools print is in the log
that the last lines name.

Examples:
    python tools/demo.py --config configs/demo/upernet_vmamba_shapes.py
    python tools/demo.py --config configs/mae/demo.py
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

from mmvmamba.datasets.files import spread

TOOLS = Path(__file__).resolve().parent
DATA = Path('data/shapes')  # the demo configs name it
DETECTION = 'configs/demo/maskrcnn_vmamba_shapes.py'
STEPS, STEPS_OF_PRETRAINING = 3, 8
RECONSTRUCTED = 6  # images
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


class Data(NamedTuple):
    """Pictures that a demo needs.

    Attributes:
        made: a file that is there once they are.
        options: of make_shapes_dataset.py.
    """

    made: Path
    options: tuple = ()


SCENES = Data(DATA / 'classes.json')
FOLDERS = Data(DATA / 'cls/classes.json', ('--classification', '--train', 2500, '--val', 250, '--size', 72))
CELLS = Data(DATA / 'cells/metadata.csv', ('--channels', 8, '--train', 960, '--val', 240, '--size', 64))
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

    def __init__(self, title: str):
        self.title = title
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
    """The steps, with one log for what they print.

    Args:
        work_dir: where everything goes.
        steps: how many there will be.
    """

    def __init__(self, work_dir: Path, steps: int):
        self.work_dir = work_dir
        self.log = work_dir / 'demo.log'
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text('')
        self._number, self._steps = 0, steps

    def _title(self, name: str) -> str:
        self._number += 1
        return f'[{self._number}/{self._steps}] {name:<22}'

    def run(self, name: str, tool: str, *arguments: object, epochs: int = 0) -> None:
        """Run one of the tools, its output into the log; stop where it fails, with the log's last lines."""
        command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
        step = Step(self._title(name))
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
                        progress = read_progress(line, epochs)
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

    def make(self, name: str, data: Data) -> None:
        """Make the pictures, unless they are there."""
        if data.made.exists():
            print(f'{self._title(name)} in {data.made.parent} already', flush=True)
        else:
            self.run(name, 'make_shapes_dataset.py', DATA, '--overwrite', *data.options)

    def train(self, name: str, config: str, options: list[str], folder: str = '') -> Path:
        """Train in a folder of the work folder; the last checkpoint."""
        work_dir = self.work_dir / folder
        given = [int(o.partition('=')[2]) for o in options if o.startswith('train_cfg.max_epochs=')]
        cfg = Config.fromfile(config, import_custom_modules=False)
        epochs = given[0] if given else cfg.train_cfg.get('max_epochs') or 0
        self.run(name, 'train.py', config, '--work-dir', work_dir, *_options(options), epochs=epochs)
        return Path((work_dir / 'last_checkpoint').read_text().strip())

    def test(self, name: str, config: str, checkpoint: Path, options: list[str], folder: str = '') -> Path:
        """Test and draw, print the metrics in the end; the pictures' folder."""
        work_dir = self.work_dir / folder
        test, pictures = work_dir / 'test', work_dir / 'pictures'
        self.run(name, 'test.py', config, checkpoint, '--work-dir', test, '--show-dir', pictures, *_options(options))
        return pictures


def _options(options: list[str]) -> list[str]:
    return ['--cfg-options', *options] if options else []


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


def data_of(cfg: Config) -> Data:
    """What a demo's config trains on."""
    if cfg.train_dataloader.dataset.type == 'mmvmamba.JumpCPDataset':
        return CELLS
    return FOLDERS if cfg.default_scope == 'mmpretrain' else SCENES


def plain(demo: Demo, config: str, data: Data, options: list[str]) -> list[str]:
    """Data, training, evaluation; the lines to end with."""
    demo.make('data', data)
    checkpoint = demo.train('training', config, options)
    pictures = demo.test('evaluation, pictures', config, checkpoint, options)
    return [
        'On held-out images:',
        *table(metrics_of(demo.work_dir / 'test')),
        f'\npictures:   {where_drawn(pictures)}',
        f'checkpoint: {checkpoint}',
    ]


def pretraining(demo: Demo, config: str, options: list[str]) -> list[str]:
    """Masked pretraining, and its encoder in a classifier and in a detector; the lines to end with."""
    demo.make('data', FOLDERS)
    demo.make('data of the detector', SCENES)
    encoder = demo.train('masked pretraining', config, options)
    drawn = demo.work_dir / 'reconstructions.png'
    held_out = sorted((FOLDERS.made.parent / 'val').glob('*/*.jpg'))
    images = [held_out[i] for i in spread(len(held_out), RECONSTRUCTED)]
    demo.run('reconstructions', 'analysis/mae_pictures.py', config, encoder, *images, '--out', drawn)
    start = [f'model.backbone.init_cfg.checkpoint={encoder}']
    shown = []
    for name, folder in (('fine-tuning', 'finetuned'), ('detector', 'detector')):
        own = str(Path(config).with_name(f'demo_{folder}.py'))
        checkpoint = demo.train(name, own, start, folder)
        pictures = demo.test('evaluation, pictures', own, checkpoint, start, folder)
        shown += [f'{name}, on held-out images:', *table(metrics_of(demo.work_dir / folder / 'test'))]
        shown += [f'pictures: {where_drawn(pictures)}', f'checkpoint: {checkpoint}\n']
    return [*shown, f'reconstructions (image, what is seen, what is made of it): {drawn}', f'encoder: {encoder}']


def metrics_of(folder: Path) -> dict:
    """What the last test there has measured."""
    return json.loads(newest(folder, '*.json').read_text())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default=DETECTION, help='a config of a demo (default: %(default)s)')
    parser.add_argument('--work-dir', type=Path, help='where everything goes (default: work_dirs/<name of the config>)')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='changes to the config')
    arguments = parser.parse_args(argv)
    config, options = arguments.config, arguments.cfg_options
    name = Path(config).stem
    work_dir = arguments.work_dir or Path('work_dirs') / (
        f'{Path(config).parent.name}_demo' if name == 'demo' else name
    )
    start = time.monotonic()
    cfg = Config.fromfile(config, import_custom_modules=False)
    steps = STEPS_OF_PRETRAINING if cfg.model.type == 'MAE' else STEPS
    demo = Demo(work_dir, steps)
    print(f'{config}: {steps} steps, in {work_dir}', flush=True)
    said = pretraining(demo, config, options) if cfg.model.type == 'MAE' else plain(demo, config, data_of(cfg), options)
    print('\n' + '\n'.join(said))
    print(f'log:        {demo.log}')
    print(f'\nDone in {(time.monotonic() - start) / 60:.1f} minutes.')
    return 0


if __name__ == '__main__':
    sys.exit(main())
