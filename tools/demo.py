"""The whole way on a small scale: make the shapes dataset, train on it, evaluate, draw. What `make demo` runs.

Example: python tools/demo.py --config configs/demo/upernet_vmamba_shapes.py
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
DATA = Path('data/shapes')  # the demo configs name it
DETECTION = 'configs/demo/maskrcnn_vmamba_shapes.py'
METRICS = {'coco/bbox_mAP_50': 'box AP50', 'coco/segm_mAP_50': 'mask AP50', 'mIoU': 'mIoU (%)'}


def run(tool: str, *arguments: object) -> None:
    """Run one of the tools with its output going straight to the terminal; stop where it fails."""
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    print(f'\n$ {" ".join(command)}', flush=True)
    code = subprocess.run(command).returncode
    if code:
        sys.exit(f'{tool} failed with exit code {code}; the lines above say why')


def newest(folder: Path, pattern: str) -> Path:
    """The file below `folder` that was written last."""
    return max(folder.rglob(pattern), key=lambda path: path.stat().st_mtime)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default=DETECTION, help='a config of configs/demo (default: %(default)s)')
    parser.add_argument('--work-dir', type=Path, help='where everything goes (default: work_dirs/<name of the config>)')
    arguments = parser.parse_args(argv)
    work_dir = arguments.work_dir or Path('work_dirs') / Path(arguments.config).stem
    pictures = work_dir / 'pictures'
    start = time.monotonic()

    if not (DATA / 'classes.json').exists():
        run('make_shapes_dataset.py', DATA, '--overwrite')
    run('train.py', arguments.config, '--work-dir', work_dir)
    log = newest(work_dir, '*.log')
    checkpoint = Path((work_dir / 'last_checkpoint').read_text().strip())
    run('test.py', arguments.config, checkpoint, '--work-dir', work_dir / 'test', '--show-dir', pictures)

    metrics = json.loads(newest(work_dir / 'test', '*.json').read_text())
    print(f'\nDone in {(time.monotonic() - start) / 60:.1f} minutes. On held-out images:')
    for key, name in METRICS.items():
        if key in metrics:
            print(f'  {name}: {metrics[key]:.4g}')
    drawn = [path for path in pictures.rglob('*.*g') if path.is_file()]
    where = f'{drawn[0].parent}  (left: ground truth, right: predictions)' if drawn else f'none in {pictures}'
    print(f'pictures:   {where}')
    print(f'log:        {log}')
    print(f'checkpoint: {checkpoint}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
