"""FastVim backbones for classification, detection and segmentation, and Vim, their unpooled baseline.

Paper: Kapse et al., "Fast Vision Mamba: Pooling Spatial Dimensions for Accelerated Processing", arXiv 2502.00594; Vim:
Zhu et al., "Vision Mamba", arXiv 2401.09417. This file is an implementation of its own whose parameter names are the
published ones.
"""

import math
import re

import torch
from mmengine.logging import print_log
from torch import nn
from torch.nn import functional as F

from mmvmamba import checkpoints
from mmvmamba.kernels.dispatch import BACKENDS
from mmvmamba.kernels.pooled_scan.op import AXES, POOLS
from mmvmamba.registry import register_model

from ..arguments import architecture, check_choice, check_image, check_out_indices
from ..layers.drop_path import DropPath
from ..layers.pooled_mixer import PooledMixer
from ..layers.positions import resize_positions
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

_NORMS = {'LN': nn.LayerNorm, 'RMS': nn.RMSNorm}
OUT_TYPES = ('dense', 'featmap', 'cls_token')
_DENSE_OUTPUTS = (5, 11, 17, 23)


class PatchEmbed(nn.Module):
    """One linear map per square patch; images are zero-padded at the bottom and right to whole patches."""

    def __init__(self, in_channels: int, channels: int, patch_size: int):
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

    def __init__(self, channels: int, norm: type[nn.Module], drop_path: float, **mixer):
        super().__init__()
        self.norm = norm(channels, eps=1e-5)
        self.mixer = PooledMixer(channels, **mixer)
        self.drop_path = DropPath(drop_path)

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixer's output and residual stream, both `(B, H, W, C)`; the first block has no residual stream yet."""
        wide = _wide(hidden)
        residual = wide if residual is None else residual + self.drop_path(wide)
        return self.mixer(self.norm(residual.to(self.norm.weight.dtype))), residual


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@register_model
class FastVim(BaseBackbone):
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

    def __init__(
        self,
        arch='tiny',
        img_size=224,
        patch_size=None,
        in_channels=3,
        out_indices=None,
        drop_path_rate=None,
        pool='mean',
        scan_path='row',
        rotate=True,
        norm_after_scan=True,
        norm=None,
        pool_scale=1.0,
        with_cp=False,
        frozen_stages=-1,
        backend='auto',
        init_cfg=None,
        out_type='dense',
        **fields,
    ):
        super().__init__(init_cfg=init_cfg)
        name = type(self).__name__
        check_choice(name, 'out_type', out_type, OUT_TYPES)
        norm = ('LN' if out_type == 'dense' else 'RMS') if norm is None else norm
        check_choice(name, 'pool', pool, POOLS)
        check_choice(name, 'scan_path', scan_path, AXES)
        check_choice(name, 'norm', norm, _NORMS)
        check_choice(name, 'backend', backend, ('auto', *BACKENDS))
        if pool is None and pool_scale != 1:
            raise ValueError(f'{name}: pool_scale={pool_scale!r} has nothing to scale where pool=None; expected 1')
        if pool is not None and out_type == 'cls_token':
            raise ValueError(f'{name}: out_type={out_type!r} needs pool=None; pool={pool!r} has no class token')
        spec = architecture(name, arch, ARCHS, 'tiny', fields)
        channels, depth = spec['embed_dims'], spec['depth']
        self.arch = arch
        self.in_channels = in_channels
        self.depth = depth
        self.patch_size = spec['patch_size'] if patch_size is None else patch_size
        self.grid = self._grid_of(img_size)
        self.out_type = out_type
        self.out_indices = self._outputs(out_indices)
        self.with_cp = with_cp
        blocks = self.out_indices[-1] + 1
        rate = spec['drop_path_rate'] if drop_path_rate is None else drop_path_rate
        last = max(depth - 1, 1)
        mixer = {key: spec[key] for key in ('d_state', 'expand', 'd_conv')}
        mixer['dt_rank'] = math.ceil(channels / 16) if spec['dt_rank'] == 'auto' else spec['dt_rank']
        mixer.update(norm_after_scan=norm_after_scan, pool=pool, scaling=pool_scale, depth=depth, backend=backend)
        self.scan_path = scan_path
        axes = [scan_path, scan_path]
        if rotate and pool is not None:
            axes[1] = next(axis for axis in AXES if axis != scan_path)
        if out_type == 'cls_token':  # a sequence is no grid
            axes = ['row', 'row']

        self.num_features = [channels] * len(self.out_indices)
        self.patch_embed = PatchEmbed(in_channels, channels, self.patch_size)
        self._add_embeddings(channels)
        self.layers = nn.ModuleList(
            # what a block drops is the output of the one before it
            Block(channels, _NORMS[norm], rate * max(i - 1, 0) / last, axis=axes[i % 2], **mixer)
            for i in range(blocks)
        )
        if out_type == 'dense':
            for i in range(len(self.out_indices)):
                self.add_module(f'outnorm_{i}', nn.LayerNorm(channels))
        else:
            self.drop_path = DropPath(rate)
            self.norm_f = _NORMS[norm](channels, eps=1e-5)
        self._freeze(frozen_stages, blocks)
        if frozen_stages >= 0:
            for embedding in (self.pos_embed, self.cls_token):
                if embedding is not None:
                    embedding.requires_grad_(False)

    def _add_embeddings(self, channels: int) -> None:
        """A position for every patch of the grid, and a class token with a position of its own."""
        token = self.out_type == 'cls_token'
        self.cls_token = nn.Parameter(torch.empty(1, 1, channels)) if token else None
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(self.grid) + token, channels))
        for embedding in (self.pos_embed, self.cls_token):
            if embedding is not None:
                nn.init.trunc_normal_(embedding, std=0.02)

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

    def _grid_of(self, img_size) -> tuple[int, int]:
        sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if len(sides) != 2 or not all(isinstance(side, int) and side >= self.patch_size for side in sides):
            raise ValueError(
                f'{type(self).__name__}: img_size={img_size!r}; expected pixels a side, or (H, W), of at least one '
                f'patch ({self.patch_size})'
            )
        return tuple(math.ceil(side / self.patch_size) for side in sides)

    def _output_norms(self) -> list[tuple[int, nn.Module]]:
        if self.out_type != 'dense':
            return [(self.out_indices[0], self.norm_f)]
        return [(block, getattr(self, f'outnorm_{i}')) for i, block in enumerate(self.out_indices)]

    def _adapted(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Refuse weights of another patch size, bring the position embedding to this model's grid."""
        if name == 'patch_embed.proj.weight' and value.shape[2:] != self.patch_embed.proj.weight.shape[2:]:
            theirs = ' x '.join(str(side) for side in value.shape[2:])
            raise checkpoints.CheckpointError(
                f'{type(self).__name__}: the checkpoint was trained with patches of {theirs} pixels, this model has '
                f'patch_size={self.patch_size}; build it with the patch size of the checkpoint'
            )
        if name != 'pos_embed' or value.ndim != 3 or value.shape[1] == self.pos_embed.shape[1]:
            return value
        patches, token = (value, None) if self.cls_token is None else _split(value)
        side = math.isqrt(patches.shape[1])
        if side * side != patches.shape[1]:
            raise checkpoints.CheckpointError(
                f'{type(self).__name__}: the position embedding of the checkpoint has {patches.shape[1]} tokens, '
                f'which are no square grid, and this model has a grid of {self.grid[0]} x {self.grid[1]}; build it '
                f'with img_size=(H, W) of the images that the checkpoint was trained on'
            )
        patches = resize_positions(patches, (side, side), self.grid).flatten(1, 2)
        return patches if token is None else _insert(patches, token)

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
        hidden, residual = self._embed(x), None
        outs = []
        for i, block in enumerate(self.layers):
            inputs = (hidden, residual)
            hidden, residual = recomputed(block, *inputs) if self.with_cp else block(*inputs)
            if self.out_type == 'dense' and i in self.out_indices:
                outs.append(_as_map(getattr(self, f'outnorm_{len(outs)}')(hidden)))
        if self.out_type == 'dense':
            return tuple(outs)
        total = residual + self.drop_path(_wide(hidden))
        if self.out_type == 'cls_token':
            total = total[:, 0, _middle(total.shape[2])]
        out = self.norm_f(total.to(self.norm_f.weight.dtype))
        return (out if self.out_type == 'cls_token' else _as_map(out),)

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        """Patches with their positions, `(B, H, W, C)`; with a class token among them the line `(B, 1, L + 1, C)`."""
        hidden = self.patch_embed(x)
        if self.cls_token is None:
            return hidden + resize_positions(self.pos_embed, self.grid, hidden.shape[1:3])
        patches, token = _split(self.pos_embed)
        hidden = hidden + resize_positions(patches, self.grid, hidden.shape[1:3])
        if self.scan_path == 'column':
            hidden = hidden.transpose(1, 2)
        token = (self.cls_token + token).to(hidden.dtype).expand(len(hidden), -1, -1)
        return _insert(hidden.flatten(1, 2), token)[:, None]


def _as_map(x: torch.Tensor) -> torch.Tensor:
    """A copy channels first: mmcv's RoIAlign reads memory as channels first whatever the strides say."""
    return x.permute(0, 3, 1, 2).contiguous()


def _middle(tokens: int) -> int:
    """The class token's place among `tokens`, itself included."""
    return (tokens - 1) // 2


def _split(sequence: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`(B, L + 1, C)` with a class token in the middle to `(B, L, C)` and `(B, 1, C)`."""
    place = _middle(sequence.shape[1])
    return torch.cat([sequence[:, :place], sequence[:, place + 1 :]], dim=1), sequence[:, place : place + 1]


def _insert(patches: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Undo `_split`."""
    place = _middle(patches.shape[1] + 1)
    return torch.cat([patches[:, :place], token, patches[:, place:]], dim=1)


_SCAN_NORM = '.mixer.layernorm.'


def _translate(state_dict, expected) -> dict[str, torch.Tensor]:
    """Classification models: RMSNorm has no bias, and Vim's class token sits in the middle of the positions.

    A model that has a class token itself is a classifier too and takes everything as it is.
    """
    translated = dict(state_dict)
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
        translated['pos_embed'], _ = _split(state_dict['pos_embed'])
    return translated


def _measure(state_dict) -> dict | None:
    patches = state_dict.get('patch_embed.proj.weight')
    numbers = {m.group(1) for m in map(re.compile(r'layers\.(\d+)\.').match, state_dict) if m}
    if patches is None or 'pos_embed' not in state_dict or patches.ndim != 4:
        return None
    return dict(embed_dims=patches.shape[0], depth=len(numbers), patch_size=patches.shape[-1])


_CONTAINERS = ('state_dict_ema', 'state_dict', 'model', 'model_ema')
checkpoints.register(checkpoints.Family('fastvim', 'FastVim', ARCHS, _measure, _translate, _CONTAINERS))
