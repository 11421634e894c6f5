"""Draw what a detector or a segmentor finds in an image, or in every image of a folder.

Files of a folder that cannot be read are named and left out, and the exit code is 1.

Example:
    python tools/image_demo.py street.jpg configs/maskrcnn_vmamba_t.py CHECKPOINT --out pictures
"""

import argparse
import sys
from pathlib import Path

import torch
from mmengine.registry import init_default_scope

from mmvmamba import checkpoints
from mmvmamba.datasets.images import readable_images
from mmvmamba.engine import launch


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', metavar='IMAGE', type=Path, help='image file, or folder of images')
    parser.add_argument('config', metavar='CONFIG', help='config file')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint file, or mmvmamba://NAME')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the pictures')
    parser.add_argument('--device', help='cpu or cuda:0 and the like (default: the GPU if there is one)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='detections to draw (default: %(default)s)')
    launch.add_trust(parser)
    return parser.parse_args(argv)


def draw(arguments: argparse.Namespace) -> int:
    """Run the toolbox's own inferencer, after checking what it would not; returns the exit code."""
    cfg = launch.load_config(arguments.config)
    task = launch.task_of(cfg)
    images, problems = readable_images(arguments.image)
    for problem in problems:
        print(f'image_demo.py: left out: {problem}', file=sys.stderr)
    trust = arguments.trust_checkpoint
    checkpoints.read(arguments.checkpoint, trust=trust)  # the inferencers would unpickle anything
    init_default_scope(task)
    device = arguments.device or ('cuda:0' if torch.cuda.is_available() else 'cpu')
    options = dict(model=arguments.config, weights=arguments.checkpoint, device=device, scope=task)
    with checkpoints.guard(trust):
        if task == 'mmdet':
            from mmdet.apis import DetInferencer

            inferencer, drawing = DetInferencer(**options), dict(pred_score_thr=arguments.score_thr)
        else:
            from mmseg.apis import MMSegInferencer

            inferencer, drawing = MMSegInferencer(**options), {}
    # the heads as well: the inferencer took what fits and went on
    checkpoints.load(arguments.checkpoint, inferencer.model, trust=trust)
    for image in images:
        inferencer(str(image), out_dir=arguments.out, **drawing)
    pictures = [picture for image in images if (picture := Path(arguments.out, 'vis', image.name)).is_file()]
    print(f'Pictures of {len(pictures)} of {len(images) + len(problems)} images: {Path(arguments.out, "vis")}')
    return int(problems != [] or len(pictures) < len(images))


def main(argv: list[str] | None = None) -> int:
    try:
        return draw(parse_arguments(argv))
    except (FileNotFoundError, ValueError) as error:
        print(f'image_demo.py: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
