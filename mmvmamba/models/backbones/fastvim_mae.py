"""FastMaskVim: FastVim's and Vim's encoder of masked autoencoders, inside mmpretrain's `MAE`.

Paper: Kapse et al., "Fast Vision Mamba: Pooling Spatial Dimensions for Accelerated Processing", arXiv 2502.00594; He et
al., "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377. This file is an implementation of its own
whose parameter names are the published ones.
"""

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn

from mmvmamba import checkpoints
from mmvmamba.kernels.dispatch import BACKENDS
from mmvmamba.registry import register_model

from ..arguments import check_image
from ..layers.class_token import insert_token, split_token
from ..layers.norm import RMSNorm
from ..layers.positions import resize_positions, sincos_positions
from ..layers.precision import widened
from .columnar import ARCHS, ColumnarBackbone, PatchEmbed, build_blocks


@register_model
class FastMaskVim(ColumnarBackbone):
    """Encode those patches of an image that a random mask leaves.

    The kept patches stay in order, as a scan needs it. Patches are masked by PyTorch's generator of the images' device.

    Args:
        arch: a row of FastVim's `ARCHS`, or a dict of its fields; those left out are those of 'base'.
        img_size: pixels a side, or (H, W). Other sizes run as well: the embedding is interpolated to their grid.
        patch_size: pixels a side of a patch; None takes the architecture's (16; huge: 14).
        in_channels: channels of the image.
        mask_ratio: share of the patches that is removed, in [0, 1).
        pool: 'mean' over a line, or None for Vim, which scans all kept tokens and a class token in their middle.
        consistent: False: the backward direction pools as the published code does, by the lines of the tokens that
            stand as far from the sequence's other end; released weights were trained so. True: by the tokens' own.
        with_cp: recompute blocks in the backward pass instead of storing their activations.
        frozen_stages: -1 trains everything; 0 freezes what comes before the blocks; n also freezes the first n blocks.
        backend: of the scan: 'auto', 'cpu', 'torch' or 'reference' ('triton' for Vim).
        init_cfg: mmengine's initialisation config.
        **fields: replace fields of the architecture: embed_dims, depth, d_state, expand, d_conv, dt_rank.

    Raises:
        TypeError, ValueError: an unknown name or a value out of range, by name.

    Source: Kapse et al., arXiv 2502.00594. Parameter names are those of the published weights.
    """

    family = 'fastvim_mae'
    choices: ClassVar = dict(pool=('mean', None), backend=('auto', *BACKENDS))

    def __init__(
        self,
        arch: str | Mapping = 'base',
        img_size: int | Sequence[int] = 224,
        patch_size: int | None = None,
        in_channels: int = 3,
        mask_ratio: float = 0.75,
        pool: str | None = 'mean',
        consistent: bool = False,
        with_cp: bool = False,
        frozen_stages: int = -1,
        backend: str = 'auto',
        init_cfg: Mapping | Sequence[Mapping] | None = None,
        **fields,
    ):
        super().__init__(init_cfg=init_cfg)
        name = type(self).__name__
        self._check_choices(pool=pool, backend=backend)
        if not isinstance(mask_ratio, (int, float)) or not 0 <= mask_ratio < 1:
            raise ValueError(f'{name}: mask_ratio={mask_ratio!r}; expected a share in [0, 1)')
        spec = self._describe(arch, 'base', img_size, patch_size, fields)
        channels = spec['embed_dims']
        self.in_channels = in_channels
        self.mask_ratio = mask_ratio
        self.with_cp = with_cp
        self.num_features = [channels]
        self.patch_embed = PatchEmbed(in_channels, channels, self.patch_size)
        self.patch_embed.proj.reset_parameters()  # of which the bias stays
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(channels, -1))
        self.cls_token = None if pool else nn.Parameter(torch.empty(1, 1, channels))
        positions = sincos_positions(self.grid, channels)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
            positions = torch.cat([torch.zeros(1, 1, channels), positions], dim=1)  # the token's own, as published
        self.register_buffer('pos_embed', positions)
        mixer = dict(pool=pool, consistent=consistent, backend=backend)
        self.layers = build_blocks(spec, self.depth, 0.0, rotate=pool is not None, **mixer)
        self.norm_f = RMSNorm(channels, eps=1e-5)
        self._freeze(frozen_stages, self.depth)

    def _output_norms(self) -> list[tuple[int, nn.Module]]:
        return [(self.depth - 1, self.norm_f)]

    def forward(self, x: torch.Tensor, mask: bool | None = True, ids_keep: torch.Tensor | None = None):
        """Encode images, masked or not.

        Args:
            x: `(B, in_channels, H, W)`, H and W from one patch up.
            mask: None or False: all patches, as mmpretrain's `MAE` asks for features.
            ids_keep: `(B, M)` the patches to keep, row * columns + column, ascending; None: drawn by `mask_ratio`.

        Returns:
            Unmasked: one map `(B, C, H', W')` in a tuple. Masked: the kept patches' features `(B, M, C)` (Vim: with
            those of its class token in the middle), the mask `(B, H' * W')` with 1 for removed patches, and
            `(B, H' * W')`, each patch's place in the sequence of first the kept, then the removed patches.
        """
        check_image(type(self).__name__, x, self.in_channels, self.patch_size)
        tokens = self.patch_embed(x)
        grid = tuple(tokens.shape[1:3])
        positions = self.pos_embed if self.cls_token is None else self.pos_embed[:, 1:]
        tokens = tokens + resize_positions(positions, self.grid, grid)
        if mask is None or mask is False:
            return (self._features(tokens).permute(0, 3, 1, 2).contiguous(),)
        tokens = tokens.flatten(1, 2)
        if ids_keep is None:
            noise = torch.rand(tokens.shape[:2], device=x.device)
            # ties of the noise are broken alike on every device
            ids_shuffle = torch.argsort(noise, dim=1, stable=True)
        else:
            self._check_kept(ids_keep, tokens)
            ids_shuffle = self._kept_first(ids_keep, tokens.shape[1])
        count = self._kept_count(tokens.shape[1]) if ids_keep is None else ids_keep.shape[1]
        kept = ids_shuffle[:, :count].sort(dim=1).values
        ids_restore = torch.argsort(torch.cat([kept, ids_shuffle[:, count:]], dim=1), dim=1)
        mask = (ids_restore >= count).to(tokens.dtype)
        tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
        return self._encode(tokens, kept, grid), mask, ids_restore

    def _kept_count(self, patches: int) -> int:
        count = int(patches * (1 - self.mask_ratio))
        if count == 0:
            raise ValueError(f'{type(self).__name__}: mask_ratio={self.mask_ratio!r} leaves none of {patches} patches')
        return count

    def _check_kept(self, ids_keep: torch.Tensor, tokens: torch.Tensor) -> None:
        fits = ids_keep.ndim == 2 and ids_keep.dtype == torch.int64 and len(ids_keep) == len(tokens)
        fits = fits and 0 < ids_keep.shape[1] <= tokens.shape[1]
        if fits and ids_keep.numel():
            fits = bool((ids_keep.diff(dim=1) > 0).all() & (ids_keep[:, 0] >= 0).all())
            fits = fits and bool((ids_keep[:, -1] < tokens.shape[1]).all())
        if not fits:
            raise ValueError(
                f'{type(self).__name__}: ids_keep has dtype {ids_keep.dtype} and shape {tuple(ids_keep.shape)}; '
                f'expected int64 (B, M) with B = {len(tokens)}, rows ascending, out of {tokens.shape[1]} patches'
            )

    def _kept_first(self, ids_keep: torch.Tensor, patches: int) -> torch.Tensor:
        """All patches, those that are kept before the others, which are in order."""
        removed = torch.ones(len(ids_keep), patches, dtype=torch.int64, device=ids_keep.device)
        return torch.argsort(removed.scatter(1, ids_keep, 0), dim=1, stable=True)

    def _features(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(B, H, W, C)` to the same shape, normalised."""
        if self.cls_token is None:
            return self._normalised(tokens)
        patches, _ = split_token(self._encode(tokens.flatten(1, 2), None, None))
        return patches.unflatten(1, tokens.shape[1:3])

    def _encode(self, tokens: torch.Tensor, places, grid) -> torch.Tensor:
        """`(B, M, C)` to the same, or with the class token to `(B, M + 1, C)`."""
        if self.cls_token is None:
            return self._normalised(tokens, places, grid)
        line = insert_token(tokens, self.cls_token + self.pos_embed[:, :1])[:, None]
        return self._normalised(line)[:, 0]

    def _normalised(self, tokens: torch.Tensor, *kept) -> torch.Tensor:
        (hidden,), residual = self._through_blocks(tokens, *kept)
        return self.norm_f((residual + widened(hidden)).to(self.norm_f.weight.dtype))


_DECODER = ('decoder_', 'mask_token')


def _translate(state_dict, expected) -> dict[str, torch.Tensor]:
    """Published files hold encoder and decoder side by side."""
    return {name: value for name, value in state_dict.items() if not name.startswith(_DECODER)}


def _measure(state_dict) -> dict | None:
    """Nothing tells an encoder from a classifier of the same architecture but what is beside it."""
    return None


_ENCODER = re.compile(r'(patch_embed|layers|norm_f)\.|(pos_embed|cls_token)$')


def _translate_decoder(state_dict, expected) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state_dict.items() if not _ENCODER.match(name)}


_CONTAINERS = ('state_dict_ema', 'state_dict')
checkpoints.register(checkpoints.Family('fastvim_mae', 'FastMaskVim', ARCHS, _measure, _translate, _CONTAINERS))
checkpoints.register(
    checkpoints.Family('fastvim_mae_decoder', "FastMaskVim's decoder", {}, _measure, _translate_decoder, _CONTAINERS)
)
