"""The decoder of FastVim's and Vim's masked autoencoders, inside mmpretrain's `MAE`."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from mmvmamba.kernels.dispatch import BACKENDS
from mmvmamba.registry import register_model

from ..arguments import check_choice
from ..backbones.base import BaseBackbone
from ..backbones.columnar import ARCHS, build_blocks
from ..layers.class_token import split_token
from ..layers.linear import Linear
from ..layers.norm import RMSNorm
from ..layers.positions import sincos_positions


@register_model
class MaskedVimDecoder(BaseBackbone):
    """From the features of the kept patches to the pixels of all: unpooled bidirectional Mamba blocks.

    Args:
        grid: patches a side, or (rows, columns).
        patch_size: pixels a side of a patch.
        in_channels: channels of the image.
        embed_dims: of the encoder.
        decoder_embed_dims: of the decoder.
        decoder_depth: its blocks.
        encoder_depth: the output projections start smaller by its square root, as published.
        cls_token: whether the encoder's features have those of a class token in their middle (Vim).
        backend: of the scan.
        init_cfg: mmengine's initialisation config; a published file's decoder is taken.

    Source: Kapse et al., arXiv 2502.00594. Parameter names are those of the published weights.
    """

    family = 'fastvim_mae_decoder'

    def __init__(
        self,
        grid: int | Sequence[int] = 14,
        patch_size: int = 16,
        in_channels: int = 3,
        embed_dims: int = 768,
        decoder_embed_dims: int = 512,
        decoder_depth: int = 2,
        encoder_depth: int = 24,
        cls_token: bool = False,
        backend: str = 'auto',
        init_cfg: Mapping | Sequence[Mapping] | None = None,
    ):
        super().__init__(init_cfg=init_cfg)
        check_choice(type(self).__name__, 'backend', backend, ('auto', *BACKENDS))
        self.grid = (grid, grid) if isinstance(grid, int) else tuple(grid)
        self.cls_token = cls_token
        self.decoder_embed = Linear(embed_dims, decoder_embed_dims)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_embed_dims))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        positions = sincos_positions(self.grid, decoder_embed_dims)
        if cls_token:
            positions = torch.cat([torch.zeros(1, 1, decoder_embed_dims), positions], dim=1)
        self.register_buffer('decoder_pos_embed', positions)
        spec = ARCHS['base'] | dict(embed_dims=decoder_embed_dims, depth=encoder_depth)
        self.decoder_blocks = build_blocks(spec, decoder_depth, 0.0, rotate=False, pool=None, backend=backend)
        self.decoder_norm = RMSNorm(decoder_embed_dims, eps=1e-5)
        self.decoder_pred = Linear(decoder_embed_dims, patch_size**2 * in_channels)
        for linear in (self.decoder_embed, self.decoder_pred):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, latent: torch.Tensor, ids_restore: torch.Tensor) -> torch.Tensor:
        """Predict every patch.

        Args:
            latent, ids_restore: as `FastMaskVim` returns them, `(B, M, C)` and `(B, L)`.

        Returns:
            `(B, L, patch_size ** 2 * in_channels)`, a patch's pixels by row, column, channel.
        """
        patches = self.grid[0] * self.grid[1]
        if ids_restore.shape[1] != patches:
            raise ValueError(
                f'{type(self).__name__}: ids_restore has shape {tuple(ids_restore.shape)}; expected (B, {patches}), '
                f'the patches of grid={self.grid}'
            )
        kept = self.decoder_embed(latent)
        token = None
        if self.cls_token:
            kept, token = split_token(kept)
            token = token + self.decoder_pos_embed[:, :1]
        filler = self.mask_token.to(kept.dtype).expand(len(kept), patches - kept.shape[1], -1)
        tokens = torch.cat([kept, filler], dim=1)
        tokens = tokens.gather(1, ids_restore[..., None].expand_as(tokens))
        tokens = tokens + self.decoder_pos_embed[:, int(self.cls_token) :]
        if token is not None:
            tokens = torch.cat([tokens, token], dim=1)  # at the end, as published
        hidden, residual = tokens[:, None], None
        for block in self.decoder_blocks:
            hidden, residual = block(hidden, residual)
        total = (residual + hidden.to(residual.dtype))[:, 0, :patches]
        return self.decoder_pred(self.decoder_norm(total.to(self.decoder_norm.weight.dtype)))
