"""Draw effective receptive fields: of one or several configs' backbones, side by side, with one colour scale.

A name without a path stands for mmdet's own: `resnet50`, `swin_t`. CONFIG=CHECKPOINT draws trained weights.

Example:
    python tools/analysis/erf.py configs/maskrcnn_vmamba_t.py resnet50 --size 1024 --images 1 --out work_dirs/erf.png
"""

import argparse
import sys
from pathlib import Path

import torch
from mmengine.registry import MODELS, init_default_scope

from mmvmamba import checkpoints
from mmvmamba.analysis import benchmark, drawing, receptive_field
from mmvmamba.engine import launch

YARDSTICKS = {'resnet50': benchmark.resnet50, 'swin_t': benchmark.swin_t}


def build(entry: str, trust: bool) -> tuple[str, torch.nn.Module]:
    """A title and the backbone it stands for."""
    if entry in YARDSTICKS:
        return f'{entry}, initial', YARDSTICKS[entry]()
    path, _, checkpoint = entry.partition('=')
    cfg = launch.load_config(path)
    init_default_scope(launch.task_of(cfg))
    backbone = MODELS.build(cfg.model.backbone)
    if checkpoint:
        checkpoints.load(checkpoint, backbone, trust=trust)
    return f'{Path(path).stem}, {"trained" if checkpoint else "initial"}', backbone


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='+', metavar='CONFIG[=CHECKPOINT]|resnet50|swin_t', help='what to draw')
    parser.add_argument('--size', type=int, default=224, help='pixels a side (default: %(default)s)')
    parser.add_argument('--images', type=int, default=4, help='random images to average over (default: %(default)s)')
    parser.add_argument('--stage', type=int, default=-1, help='which of the maps (default: the last)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/erf.png'), help='(default: %(default)s)')
    launch.add_trust(parser)
    arguments = parser.parse_args(argv)
    fields = {}
    try:
        for entry in arguments.models:
            torch.manual_seed(0)
            title, backbone = build(entry, arguments.trust_checkpoint)
            images = (torch.randn(1, 3, arguments.size, arguments.size) for _ in range(arguments.images))
            fields[title] = receptive_field.effective_receptive_field(backbone, images, arguments.stage)
            reached, strong = (receptive_field.covered(fields[title], threshold) for threshold in (0, 1e-3))
            print(
                f'{title}: {reached:.1%} of the pixels reached, {strong:.1%} with more than a thousandth of the largest'
            )
    except (FileNotFoundError, ImportError, ValueError) as error:
        print(f'erf.py: {error}', file=sys.stderr)
        return 2
    drawing.receptive_fields(fields, arguments.out)
    print(f'picture: {arguments.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
