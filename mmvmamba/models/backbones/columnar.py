"""What the columnar backbones of many channels and of masked pre-training share."""

import math

import torch
from torch import nn

from mmvmamba import checkpoints
from mmvmamba.kernels.pooled_scan.op import AXES

from ..arguments import architecture
from ..layers.positions import resize_positions
from .base import BaseBackbone
from .fastvim import ARCHS, Block


def build_blocks(spec: dict, count: int, rate: float, scan_path='row', rotate=True, norm=nn.RMSNorm, **mixer):
    """The first `count` blocks of an architecture.

    Args:
        spec: fields of the architecture.
        count: how many.
        rate: drop path of the last block's output, rising linearly from 0.
        scan_path: axis of the first block.
        rotate: whether odd blocks take the other axis.
        norm: of the blocks.
        **mixer: of `PooledMixer`, beyond what the architecture says.
    """
    channels, last = spec['embed_dims'], max(spec['depth'] - 1, 1)
    rank = math.ceil(channels / 16) if spec['dt_rank'] == 'auto' else spec['dt_rank']
    fields = {key: spec[key] for key in ('d_state', 'expand', 'd_conv')} | dict(dt_rank=rank, depth=spec['depth'])
    axes = [scan_path, next(axis for axis in AXES if axis != scan_path) if rotate else scan_path]
    # what a block drops is the output of the one before it
    return nn.ModuleList(
        Block(channels, norm, rate * max(i - 1, 0) / last, axis=axes[i % 2], **{**fields, **mixer})
        for i in range(count)
    )


class ColumnarBackbone(BaseBackbone):
    """Patches of one size, one grid through all blocks, positions that are learned or given for one image size."""

    def _describe(self, arch, default, img_size, patch_size, fields) -> dict:
        """Keep what an architecture says of patches and grid; return its fields."""
        name = type(self).__name__
        spec = architecture(name, arch, ARCHS, default, fields)
        self.arch = arch
        self.depth = spec['depth']
        self.patch_size = spec['patch_size'] if patch_size is None else patch_size
        sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if len(sides) != 2 or not all(isinstance(side, int) and side >= self.patch_size for side in sides):
            raise ValueError(
                f'{name}: img_size={img_size!r}; expected pixels a side, or (H, W), of at least one patch '
                f'({self.patch_size})'
            )
        self.grid = tuple(math.ceil(side / self.patch_size) for side in sides)
        return spec

    def _adapted(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Refuse weights of another patch size, bring the position embedding to this model's grid."""
        if name == 'patch_embed.proj.weight' and value.shape[-2:] != self.patch_embed.proj.weight.shape[-2:]:
            theirs = ' x '.join(str(side) for side in value.shape[-2:])
            raise checkpoints.CheckpointError(
                f'{type(self).__name__}: the checkpoint was trained with patches of {theirs} pixels, this model has '
                f'patch_size={self.patch_size}; build it with the patch size of the checkpoint'
            )
        if name != 'pos_embed' or value.ndim != 3 or value.shape[1] == self.pos_embed.shape[1]:
            return value
        side = math.isqrt(value.shape[1])
        if side * side != value.shape[1]:
            raise checkpoints.CheckpointError(
                f'{type(self).__name__}: the position embedding of the checkpoint has {value.shape[1]} tokens, '
                f'which are no square grid, and this model has a grid of {self.grid[0]} x {self.grid[1]}; build it '
                f'with img_size=(H, W) of the images that the checkpoint was trained on'
            )
        return resize_positions(value, (side, side), self.grid).flatten(1, 2)
