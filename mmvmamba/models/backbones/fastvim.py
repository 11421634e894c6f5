"""FastVim backbones for classification, detection and segmentation, and Vim, their unpooled baseline.

Paper: Kapse et al., "Fast Vision Mamba: Pooling Spatial Dimensions for Accelerated Processing", arXiv 2502.00594; Vim:
Zhu et al., "Vision Mamba", arXiv 2401.09417. This file is an implementation of its own whose parameter names are the
published ones.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from mmengine.logging import print_log
from torch import nn

from mmvmamba import checkpoints
from mmvmamba.kernels.dispatch import BACKENDS
from mmvmamba.kernels.pooled_scan.op import AXES, POOLS
from mmvmamba.registry import register_model

from ..arguments import check_image, check_out_indices
from ..layers.class_token import insert_token, split_token, token_place
from ..layers.norm import RMSNorm
from ..layers.positions import resize_positions
from ..layers.precision import widened
from .columnar import ARCHS, ColumnarBackbone, PatchEmbed, build_blocks

_NORMS = {'LN': nn.LayerNorm, 'RMS': RMSNorm}
OUT_TYPES = ('dense', 'featmap', 'cls_token')
_DENSE_OUTPUTS = (5, 11, 17, 23)


@register_model
class FastVim(ColumnarBackbone):
    """FastVim: a columnar backbone of bidirectional Mamba blocks that scan pooled rows and columns in turn.

    Args:
        arch: a row of `ARCHS`, or a dict of its fields; those left out are those of 'tiny'.
        img_size: pixels a side, or (H, W), of the images that the position embedding belongs to. Any other size runs
            as well: the embedding is interpolated to its grid.
        patch_size: pixels a side of a patch; None takes the architecture's (16; huge: 14).
        in_channels: channels of the image.
        out_type: 'dense': maps of what single blocks add, each layer-normalised, for detection and segmentation;
            'featmap': one map of the sum of all blocks, normalised by `norm_f`, whose mean classifiers take;
            'cls_token' (Vim): of the same the vector of a class token that is scanned in the middle of the patches.
        out_indices: where dense, the blocks whose outputs are returned, ascending; -1 is the last. Blocks behind the
            last one of them are not built, so every parameter that exists is used. None takes 5, 11, 17 and 23; other
            types of output come behind the last block.
        drop_path_rate: of the last block's output, rising linearly from 0; None takes the architecture's.
        pool: 'mean' or 'max' over a line, or None for Vim, which scans all tokens and never rotates.
        scan_path: 'row' or 'column', the axis of the first block.
        rotate: odd blocks take the other axis (pooled models only).
        norm_after_scan: layer-normalise before the gate.
        norm: of the blocks and of `norm_f`: 'LN' or 'RMS'; None takes 'LN' where dense and 'RMS' elsewhere, as
            published. Dense outputs are always layer-normalised.
        pool_scale: factor of the pooled tokens (masked pre-training: the kept fraction); 1 where nothing is pooled.
        with_cp: recompute blocks in the backward pass instead of storing their activations.
        frozen_stages: -1 trains everything; 0 freezes patch and position embedding; n also freezes the first n blocks.
        backend: of the scan: 'auto', 'triton', 'cpu', 'torch' or 'reference'.
        init_cfg: mmengine's initialisation config.
        **fields: replace fields of the architecture: embed_dims, depth, d_state, expand, d_conv, dt_rank.

    Raises:
        TypeError, ValueError: an unknown name or a value out of range, by name.
        CheckpointError: on loading weights of another patch size, or a position embedding whose grid is unknown.

    Source: Kapse et al., arXiv 2502.00594. Parameter names are those of the published weights.
    """

    family = 'fastvim'
    choices: ClassVar = dict(out_type=OUT_TYPES, pool=POOLS, scan_path=AXES, norm=_NORMS, backend=('auto', *BACKENDS))

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        img_size: int | Sequence[int] = 224,
        patch_size: int | None = None,
        in_channels: int = 3,
        out_indices: int | Sequence[int] | None = None,
        drop_path_rate: float | None = None,
        pool: str | None = 'mean',
        scan_path: str = 'row',
        rotate: bool = True,
        norm_after_scan: bool = True,
        norm: str | None = None,
        pool_scale: float = 1.0,
        with_cp: bool = False,
        frozen_stages: int = -1,
        backend: str = 'auto',
        init_cfg: Mapping | Sequence[Mapping] | None = None,
        out_type: str = 'dense',
        **fields,
    ):
        super().__init__(init_cfg=init_cfg)
        norm = ('LN' if out_type == 'dense' else 'RMS') if norm is None else norm
        self._check_choices(out_type=out_type, pool=pool, scan_path=scan_path, norm=norm, backend=backend)
        self._check_pool(pool, pool_scale, out_type)
        spec = self._describe(arch, 'tiny', img_size, patch_size, fields)
        channels = spec['embed_dims']
        rate = spec['drop_path_rate'] if drop_path_rate is None else drop_path_rate
        self.in_channels = in_channels
        self.out_type = out_type
        self.out_indices = self._outputs(out_indices)
        self.scan_path = scan_path
        self.with_cp = with_cp
        self.num_features = [channels] * len(self.out_indices)
        self.patch_embed = PatchEmbed(in_channels, channels, self.patch_size)
        token = out_type == 'cls_token'
        self._add_embeddings(channels, math.prod(self.grid) + token, token)
        self.layers = build_blocks(
            spec,
            self.out_indices[-1] + 1,
            rate,
            scan_path='row' if token else scan_path,  # a sequence is no grid
            rotate=rotate and pool is not None,
            norm=_NORMS[norm],
            norm_after_scan=norm_after_scan,
            pool=pool,
            scaling=pool_scale,
            backend=backend,
        )
        self._add_outputs(channels, rate, _NORMS[norm])
        self._freeze(frozen_stages, len(self.layers))

    def _check_pool(self, pool: str | None, pool_scale: float, out_type: str) -> None:
        """Refuse what goes with pooled models, or with unpooled ones, only."""
        name = type(self).__name__
        if pool is None and pool_scale != 1:
            raise ValueError(f'{name}: pool_scale={pool_scale!r} has nothing to scale where pool=None; expected 1')
        if pool is not None and out_type == 'cls_token':
            raise ValueError(f'{name}: pool={pool!r} has no class token; out_type={out_type!r} expects pool=None')

    def _outputs(self, out_indices) -> tuple[int, ...]:
        """The blocks whose outputs are returned."""
        name = type(self).__name__
        if self.out_type == 'dense':
            return check_out_indices(name, _DENSE_OUTPUTS if out_indices is None else out_indices, self.depth)
        last = (self.depth - 1,)
        if out_indices is not None and check_out_indices(name, out_indices, self.depth) != last:
            raise ValueError(
                f'{name}: out_indices={out_indices!r}; expected None or {last}, as out_type={self.out_type!r} comes '
                f'behind the last block'
            )
        return last

    def _on_grid(self, positions: torch.Tensor) -> torch.Tensor:
        """As of every columnar backbone; a class token's position stays in the middle, as it is."""
        if self.cls_token is None:
            return super()._on_grid(positions)
        patches, token = split_token(positions)
        return insert_token(super()._on_grid(patches), token)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Number a parameter's layer for mmpretrain's layer-wise decay, in which two blocks are one layer.

        mmpretrain multiplies the learning rate by `rate ** (layers - number - 1)`. With n = depth + 1 that exponent is
        ceil(n / 2) for the embeddings, ceil((n - i - 1) / 2) for block i, and 0 for everything behind the blocks.

        Args:
            param_name: of a parameter of this backbone, or of the model that has it.
            prefix: what stands before the names of this backbone's parameters.

        Returns:
            The number, and how many layers there are.

        Source: the fine-tuning of Kapse et al., arXiv 2502.00594.
        """
        layers = self.depth + 1
        parts = param_name.removeprefix(prefix).split('.')
        exponent = 0
        if param_name.startswith(prefix):
            if parts[0] in ('patch_embed', 'pos_embed', 'cls_token'):
                exponent = math.ceil(layers / 2)
            elif parts[0] == 'layers':
                exponent = math.ceil((layers - int(parts[1]) - 1) / 2)
        last = math.ceil(layers / 2)
        return last - exponent, last + 1

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Extract features.

        Args:
            x: `(B, in_channels, H, W)`, H and W from one patch up.

        Returns:
            For each of `out_indices` a contiguous map `(B, C, ceil(H / patch_size), ceil(W / patch_size))`; where
            `out_type` is 'cls_token', one vector `(B, C)`.
        """
        check_image(type(self).__name__, x, self.in_channels, self.patch_size)
        outs, residual = self._through_blocks(self._embed(x))
        if self.out_type == 'dense':
            return tuple(_as_map(norm(out)) for (_, norm), out in zip(self._output_norms(), outs, strict=True))
        total = residual + self.drop_path(widened(outs[0]))
        if self.out_type == 'cls_token':
            total = total[:, 0, token_place(total.shape[2])]
        out = self.norm_f(total.to(self.norm_f.weight.dtype))
        return (out if self.out_type == 'cls_token' else _as_map(out),)

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        """Patches with their positions, `(B, H, W, C)`; with a class token among them the line `(B, 1, L + 1, C)`."""
        hidden = self.patch_embed(x)
        if self.cls_token is None:
            return hidden + resize_positions(self.pos_embed, self.grid, hidden.shape[1:3])
        patches, token = split_token(self.pos_embed)
        hidden = hidden + resize_positions(patches, self.grid, hidden.shape[1:3])
        if self.scan_path == 'column':
            hidden = hidden.transpose(1, 2)
        return insert_token(hidden.flatten(1, 2), self.cls_token + token)[:, None]


def _as_map(x: torch.Tensor) -> torch.Tensor:
    """A copy channels first: mmcv's RoIAlign reads memory as channels first whatever the strides say."""
    return x.permute(0, 3, 1, 2).contiguous()


_SCAN_NORM = '.mixer.layernorm.'


def _translate(state_dict, expected) -> dict[str, torch.Tensor]:
    """Classification models: RMSNorm has no bias, and Vim's class token sits in the middle of the positions.

    A model that has a class token itself is a classifier too and takes everything as it is.
    """
    # a masked autoencoder's file has its decoder beside the backbone
    translated = {k: v for k, v in state_dict.items() if not k.startswith(('decoder_', 'mask_token'))}
    for name, value in expected.items():
        if re.fullmatch(r'layers\.\d+\.norm\.bias', name) and name not in translated:
            translated[name] = torch.zeros(value.shape, dtype=value.dtype)  # whatever device the model is on
    if 'cls_token' in expected:
        return translated
    if 'cls_token' in state_dict and not any(_SCAN_NORM in name for name in state_dict):
        # its authors' classifiers have no norm behind the scan; the published detector gave them a fresh one
        fresh = {name: value for name, value in expected.items() if _SCAN_NORM in name}
        for name, value in fresh.items():
            translated[name] = torch.full(value.shape, float(name.endswith('weight')), dtype=value.dtype)
        if fresh:
            print_log(f'Vim without a norm behind the scan: {len(fresh)} *{_SCAN_NORM}* start fresh', logger='current')
    if 'cls_token' in state_dict and 'pos_embed' in state_dict:
        translated['pos_embed'], _ = split_token(state_dict['pos_embed'])
    return translated


def _measure(state_dict) -> dict | None:
    patches = state_dict.get('patch_embed.proj.weight')
    numbers = {m.group(1) for m in map(re.compile(r'layers\.(\d+)\.').match, state_dict) if m}
    if patches is None or 'pos_embed' not in state_dict or patches.ndim != 4:
        return None
    return dict(embed_dims=patches.shape[0], depth=len(numbers), patch_size=patches.shape[-1])


_CONTAINERS = ('state_dict_ema', 'state_dict', 'model', 'model_ema')
checkpoints.register(checkpoints.Family('fastvim', 'FastVim', ARCHS, _measure, _translate, _CONTAINERS))
