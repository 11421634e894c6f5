"""Draw what a query patch gathers through SS2D: from every other patch, per route and summed, over the image.

Example:
    python tools/analysis/activation_map.py IMAGE configs/demo/maskrcnn_vmamba_shapes.py CHECKPOINT --query 0.5 0.5 \\
        --stage 2 --block 0 --out work_dirs/activation.png
"""

import argparse
import sys
from pathlib import Path

import torch
from mmengine.registry import MODELS, init_default_scope

from mmvmamba import checkpoints
from mmvmamba.analysis import activation, drawing
from mmvmamba.datasets.images import read_image
from mmvmamba.engine import launch


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', type=Path, metavar='IMAGE', help='image file')
    parser.add_argument('config', metavar='CONFIG', help='config file with a VMamba')
    parser.add_argument('checkpoint', nargs='?', metavar='CKPT', help='weights (default: initial ones)')
    parser.add_argument(
        '--query', type=float, nargs=2, default=(0.5, 0.5), metavar=('X', 'Y'), help='0 to 1 (default: the centre)'
    )
    parser.add_argument('--stage', type=int, default=2, help='0 to 3 (default: %(default)s)')
    parser.add_argument('--block', type=int, default=0, help='of that stage (default: %(default)s)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/activation.png'), help='(default: %(default)s)')
    launch.add_trust(parser)
    arguments = parser.parse_args(argv)
    try:
        draw(arguments)
    except (FileNotFoundError, ValueError) as error:
        print(f'activation_map.py: {error}', file=sys.stderr)
        return 2
    print(f'picture: {arguments.out}')
    return 0


def draw(arguments: argparse.Namespace) -> None:
    if not all(0 <= value <= 1 for value in arguments.query):
        raise ValueError(f'--query {arguments.query}: expected two numbers from 0 to 1')
    image = read_image(arguments.image)[..., ::-1]
    cfg = launch.load_config(arguments.config)
    init_default_scope(launch.task_of(cfg))
    backbone = MODELS.build(cfg.model.backbone).eval()
    if getattr(backbone, 'family', None) != 'vmamba':
        raise ValueError(f'{arguments.config} has the backbone {type(backbone).__name__}; expected VMamba')
    if arguments.checkpoint:
        checkpoints.load(arguments.checkpoint, backbone, trust=arguments.trust_checkpoint)
    mean, std = (torch.tensor(cfg.model.data_preprocessor[key]) for key in ('mean', 'std'))
    pixels = ((torch.from_numpy(image.copy()) - mean) / std).permute(2, 0, 1)[None].float()
    op, x = activation.layer_input(backbone, arguments.stage, arguments.block, pixels)
    column, row = (min(int(v * n), n - 1) for v, n in zip(arguments.query, (x.shape[1], x.shape[0]), strict=True))
    drawing.contributions(activation.contributions(op, x, (row, column)), image, (row, column), arguments.out)


if __name__ == '__main__':
    sys.exit(main())
