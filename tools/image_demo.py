"""Draw what a detector or a segmentor finds in an image, or what a classifier takes it for; or every image of a folder.

Of a classifier the five likeliest classes are drawn and printed with their probabilities. Files of a folder that cannot
be read are named and left out, and the exit code is 1.

Example:
    python tools/image_demo.py street.jpg configs/maskrcnn_vmamba_t.py CHECKPOINT --out pictures
"""

import argparse
import sys
from pathlib import Path

import torch
from mmengine.registry import init_default_scope

from mmvmamba import checkpoints
from mmvmamba.datasets.images import read_image, readable_images
from mmvmamba.datasets.sources import sources
from mmvmamba.engine import launch, pictures


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
    with checkpoints.guard(trust):
        inferencer, draw_one = _INFERENCERS[task](cfg, arguments)
    # the heads as well: the inferencer took what fits and went on
    checkpoints.load(arguments.checkpoint, inferencer.model, trust=trust)
    for image in images:
        draw_one(image)
    drawn = [picture for image in images if (picture := Path(arguments.out, 'vis', image.name)).is_file()]
    print(f'Pictures of {len(drawn)} of {len(images) + len(problems)} images: {Path(arguments.out, "vis")}')
    return int(problems != [] or len(drawn) < len(images))


def _device(arguments: argparse.Namespace) -> str:
    return arguments.device or ('cuda:0' if torch.cuda.is_available() else 'cpu')


def _detect(cfg, arguments: argparse.Namespace):
    """mmdet's inferencer, and a function that draws one image with it."""
    from mmdet.apis import DetInferencer

    options = dict(model=arguments.config, weights=arguments.checkpoint, device=_device(arguments), scope='mmdet')
    inferencer = DetInferencer(**options)
    drawing = dict(out_dir=arguments.out, pred_score_thr=arguments.score_thr)
    return inferencer, lambda image: inferencer(str(image), **drawing)


def _segment(cfg, arguments: argparse.Namespace):
    """mmseg's inferencer, likewise."""
    from mmseg.apis import MMSegInferencer

    options = dict(model=arguments.config, weights=arguments.checkpoint, device=_device(arguments), scope='mmseg')
    inferencer = MMSegInferencer(**options)
    return inferencer, lambda image: inferencer(str(image), out_dir=arguments.out)


def _classify(cfg, arguments: argparse.Namespace):
    """mmpretrain's inferencer, likewise; the names of the classes are the checkpoint's or else the config's."""
    from mmpretrain import ImageClassificationInferencer

    inferencer = ImageClassificationInferencer(cfg, pretrained=arguments.checkpoint, device=_device(arguments))
    if not inferencer.classes:
        named = (source.metainfo().get('classes') for source in sources(cfg, 'test'))
        inferencer.classes = next((classes for classes in named if classes), None)

    def draw_one(image: Path) -> None:
        (batch,) = inferencer.preprocess([str(image)])
        (sample,) = inferencer.forward(batch)  # a call of the inferencer shows a progress bar an image
        pictures.draw(read_image(image), sample, inferencer.classes, Path(arguments.out, 'vis', image.name))
        found = pictures.likeliest(sample.pred_score)
        said = ', '.join(f'{pictures.name_of(inferencer.classes, label)} {score:.3f}' for label, score in found)
        print(f'{image}: {said}')

    return inferencer, draw_one


_INFERENCERS = {'mmdet': _detect, 'mmseg': _segment, 'mmpretrain': _classify}


def main(argv: list[str] | None = None) -> int:
    try:
        return draw(parse_arguments(argv))
    except (FileNotFoundError, ValueError) as error:
        print(f'image_demo.py: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
