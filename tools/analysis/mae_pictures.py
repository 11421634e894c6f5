"""Draw what a masked autoencoder makes of images: image, what it sees, its reconstruction (kept patches pasted in).

Example: python tools/analysis/mae_pictures.py configs/mae/demo.py work_dirs/x/epoch_40.pth a.jpg b.jpg
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmvmamba import checkpoints

SHOWN = 224  # pixels a side, at least about; small images are enlarged by a whole number


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config of the pre-training')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='of that pre-training')
    parser.add_argument('images', metavar='IMAGE', nargs='+', help='images of any size; they are resized')
    parser.add_argument('--out', default='mae.png', help='picture to write, a row an image (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the masks (default: %(default)s)')
    parser.add_argument('--trust-checkpoint', action='store_true', help='unpickle a checkpoint that carries code')
    return parser.parse_args(argv)


def paint(model, batch: torch.Tensor) -> torch.Tensor:
    """Rows of image, masked image, reconstruction, `(B, C, H, 3 * W)` in the image's own numbers.

    Where the model predicts normalised patches, the image's own means and deviations make them visible, as is usual.
    """
    inputs = model.data_preprocessor(dict(inputs=batch, data_samples=[None] * len(batch)))['inputs']
    latent, mask, ids_restore = model.backbone(inputs)
    prediction = model.neck(latent, ids_restore)
    patches = model.head.patchify(inputs)
    if model.head.norm_pix:
        prediction = prediction * (patches.var(-1, keepdim=True) + 1e-6) ** 0.5 + patches.mean(-1, keepdim=True)
    seen = torch.where(mask[..., None] > 0, torch.zeros_like(patches), patches)
    pasted = torch.where(mask[..., None] > 0, prediction, patches)
    pictures = torch.cat([model.head.unpatchify(p) for p in (patches, seen, pasted)], dim=3)
    mean, deviation = model.data_preprocessor.mean, model.data_preprocessor.std
    return (pictures * deviation.view(1, -1, 1, 1) + mean.view(1, -1, 1, 1)).clamp(0, 255)


def read_images(paths: list[str], side: int) -> torch.Tensor:
    """BGR images `(B, 3, side, side)`, uint8."""
    images = []
    for path in paths:
        image = cv2.imread(path)
        if image is None:
            raise FileNotFoundError(f'{path}: no image that OpenCV can read')
        images.append(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    cfg = Config.fromfile(arguments.config)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    try:
        checkpoints.load(arguments.checkpoint, model, trust=arguments.trust_checkpoint)
        images = read_images(arguments.images, model.backbone.grid[0] * model.backbone.patch_size)
    except (FileNotFoundError, checkpoints.CheckpointError) as error:
        print(f'mae_pictures.py: {error}', file=sys.stderr)
        return 1
    torch.manual_seed(arguments.seed)
    with torch.no_grad():
        rows = paint(model, images)
    picture = torch.cat(list(rows), dim=1).permute(1, 2, 0).round().byte().numpy()
    zoom = max(1, SHOWN // images.shape[2])
    picture = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
    Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(arguments.out, picture[..., ::-1])  # the network's order of colours is RGB
    print(arguments.out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
