"""What the columnar backbones share: FastVim's, those of images of many channels, that of masked pre-training."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from mmvmamba import checkpoints
from mmvmamba.kernels.pooled_scan.op import AXES

from ..arguments import architecture, check_choice
from ..layers.drop_path import DropPath
from ..layers.norm import RMSNorm
from ..layers.pooled_mixer import PooledMixer
from ..layers.positions import resize_positions
from ..layers.precision import widened
from ..layers.recompute import recomputed
from .base import BaseBackbone

_COMMON = dict(d_state=16, expand=2, d_conv=4, dt_rank='auto', patch_size=16, drop_path_rate=0.0)

ARCHS: dict[str, dict] = {
    'tiny': dict(_COMMON, embed_dims=192, depth=24),
    'small': dict(_COMMON, embed_dims=384, depth=24),
    'base': dict(_COMMON, embed_dims=768, depth=24),
    'large': dict(_COMMON, embed_dims=1024, depth=48),
    'huge': dict(_COMMON, embed_dims=1280, depth=64, patch_size=14),
}
"""The published architectures."""


class PatchEmbed(nn.Module):
    """One linear map per square patch; images are zero-padded at the bottom and right to whole patches."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        patch_size: int,
    ):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, channels, patch_size, stride=patch_size)
        nn.init.kaiming_normal_(self.proj.weight, nonlinearity='linear')  # LeCun normal
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, in_channels, H, W)` to `(B, ceil(H / patch), ceil(W / patch), C)`."""
        # padding that does not depend on the size: the convolution leaves out what makes no whole patch
        return self.proj(F.pad(x, (0, self.patch_size - 1, 0, self.patch_size - 1))).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Pre-norm mixer that hands on its bare output and the residual stream apart, the latter at least float32."""

    def __init__(
        self,
        channels: int,
        norm: type[nn.Module],
        drop_path: float,
        **mixer,
    ):
        super().__init__()
        self.norm = norm(channels, eps=1e-5)
        self.mixer = PooledMixer(channels, **mixer)
        self.drop_path = DropPath(drop_path)

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor | None, *kept) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixer's output and residual stream, both `(B, H, W, C)`; the first block has no residual stream yet.

        `kept`: further arguments of the mixer.
        """
        wide = widened(hidden)
        residual = wide if residual is None else residual + self.drop_path(wide)
        return self.mixer(self.norm(residual.to(self.norm.weight.dtype)), *kept), residual


def build_blocks(spec: dict, count: int, rate: float, scan_path='row', rotate=True, norm=RMSNorm, **mixer):
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

    choices: ClassVar[Mapping[str, Collection]]
    """What the constructor's arguments of these names may be."""

    def _check_choices(self, **arguments) -> None:
        for argument, value in arguments.items():
            check_choice(type(self).__name__, argument, value, self.choices[argument])

    def _describe(
        self,
        arch: str | Mapping,
        default: str,
        img_size: int | Sequence[int],
        patch_size: int | None,
        fields: Mapping,
    ) -> dict:
        """Keep what an architecture says of patches and grid; return its fields."""
        name = type(self).__name__
        spec = architecture(name, arch, ARCHS, default, fields)
        self.arch = arch
        self.depth = spec['depth']
        self.out_indices = (self.depth - 1,)
        self.patch_size = spec['patch_size'] if patch_size is None else patch_size
        sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if len(sides) != 2 or not all(isinstance(side, int) and side >= self.patch_size for side in sides):
            raise ValueError(
                f'{name}: img_size={img_size!r}; expected pixels a side, or (H, W), of at least one patch '
                f'({self.patch_size})'
            )
        self.grid = tuple(math.ceil(side / self.patch_size) for side in sides)
        return spec

    def _through_blocks(self, hidden: torch.Tensor, *kept) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Bare outputs of the blocks `out_indices`, and the residual stream that enters the last block's sum.

        `kept`: further arguments of every block.
        """
        residual, outs = None, []
        for i, block in enumerate(self.layers):
            inputs = (hidden, residual, *kept)
            hidden, residual = recomputed(block, *inputs) if self.with_cp else block(*inputs)
            if i in self.out_indices:
                outs.append(hidden)
        return outs, residual

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
        return self._on_grid(value)

    def _on_grid(self, positions: torch.Tensor) -> torch.Tensor:
        """A checkpoint's position embedding `(1, L, C)`, of a square grid, on this model's."""
        side = math.isqrt(positions.shape[1])
        if side * side != positions.shape[1]:
            raise checkpoints.CheckpointError(
                f'{type(self).__name__}: the position embedding of the checkpoint has {positions.shape[1]} tokens, '
                f'which are no square grid, and this model has a grid of {self.grid[0]} x {self.grid[1]}; build it '
                f'with img_size=(H, W) of the images that the checkpoint was trained on'
            )
        return resize_positions(positions, (side, side), self.grid).flatten(1, 2)

    def _add_embeddings(self, channels: int, positions: int, token: bool) -> None:
        """Learned positions, and a class token."""
        self.cls_token = nn.Parameter(torch.empty(1, 1, channels)) if token else None
        self.pos_embed = nn.Parameter(torch.empty(1, positions, channels))
        for embedding in self._embeddings():
            nn.init.trunc_normal_(embedding, std=0.02)

    def _embeddings(self) -> list[nn.Parameter]:
        """Those parameters before the blocks that are no module's."""
        return [one for one in (self.pos_embed, self.cls_token) if isinstance(one, nn.Parameter)]

    def _add_outputs(self, channels: int, rate: float, norm: type[nn.Module] = RMSNorm) -> None:
        """What comes behind single blocks where dense, elsewhere behind them all."""
        if self.out_type == 'dense':
            for i in range(len(self.out_indices)):
                self.add_module(f'outnorm_{i}', nn.LayerNorm(channels))
        else:
            self.drop_path = DropPath(rate)
            self.norm_f = norm(channels, eps=1e-5)

    def _output_norms(self) -> list[tuple[int, nn.Module]]:
        if self.out_type != 'dense':
            return [(self.out_indices[0], self.norm_f)]
        return [(block, getattr(self, f'outnorm_{i}')) for i, block in enumerate(self.out_indices)]

    def _freeze(self, frozen_stages: int, built: int) -> None:
        super()._freeze(frozen_stages, built)
        if frozen_stages >= 0:
            for embedding in self._embeddings():
                embedding.requires_grad_(False)
