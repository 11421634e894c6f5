"""VMamba backbones for classification, detection and segmentation.

Paper: Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024, arXiv 2401.10166. The published code and weights
are under the MIT licence; this file is an implementation of its own whose parameter names are the published ones.
"""

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from mmvmamba import checkpoints
from mmvmamba.kernels.dispatch import BACKENDS
from mmvmamba.kernels.ss2d.routes import PATTERNS
from mmvmamba.registry import register_model

from ..arguments import architecture, check_choice, check_image, check_out_indices
from ..layers.drop_path import DropPath
from ..layers.layout import ToChannelsFirst, ToChannelsLast
from ..layers.linear import Linear
from ..layers.mlp import Mlp
from ..layers.recompute import recomputed
from ..layers.ss2d import SS2D
from ..layers.ss2d_heads import HeadsSS2D
from ..layers.ssm_init import SSM_INITS
from .base import BaseBackbone

_CURRENT = dict(
    d_state=1,
    dt_rank='auto',
    conv_size=3,
    conv_bias=False,
    gated=False,
    mlp_ratio=4.0,
    stem='conv',
    downsample='conv',
    mamba2=False,
)
_VANILLA = dict(
    d_state=16,
    dt_rank='auto',
    ssm_ratio=2.0,
    conv_size=3,
    conv_bias=True,
    gated=True,
    mlp_ratio=0.0,
    stem='patch',
    downsample='merge',
    mamba2=False,
)

ARCHS: dict[str, dict] = {
    'tiny_s1l8': dict(_CURRENT, embed_dims=96, depths=(2, 2, 8, 2), ssm_ratio=1.0, drop_path_rate=0.2),
    'small_s1l20': dict(_CURRENT, embed_dims=96, depths=(2, 2, 20, 2), ssm_ratio=1.0, drop_path_rate=0.3),
    'base_s1l20': dict(_CURRENT, embed_dims=128, depths=(2, 2, 20, 2), ssm_ratio=1.0, drop_path_rate=0.5),
    'tiny_s2l5': dict(_CURRENT, embed_dims=96, depths=(2, 2, 5, 2), ssm_ratio=2.0, drop_path_rate=0.2),
    'small_s2l15': dict(_CURRENT, embed_dims=96, depths=(2, 2, 15, 2), ssm_ratio=2.0, drop_path_rate=0.3),
    'base_s2l15': dict(_CURRENT, embed_dims=128, depths=(2, 2, 15, 2), ssm_ratio=2.0, drop_path_rate=0.6),
    'tiny_v0': dict(_VANILLA, embed_dims=96, depths=(2, 2, 9, 2), drop_path_rate=0.2),
    'small_v0': dict(_VANILLA, embed_dims=96, depths=(2, 2, 27, 2), drop_path_rate=0.3),
    'base_v0': dict(_VANILLA, embed_dims=128, depths=(2, 2, 27, 2), drop_path_rate=0.6),
}
"""The published architectures. `s1l8`: ssm_ratio 1, 8 blocks in the third stage; `v0`: the vanilla model."""

_MAMBA2 = dict(_CURRENT, d_state=64, ssm_ratio=1.0, mamba2=True)

MAMBA2_ARCHS: dict[str, dict] = {
    'tiny_m2': dict(_MAMBA2, embed_dims=96, depths=(2, 2, 4, 2), drop_path_rate=0.2),
    'small_m2': dict(_MAMBA2, embed_dims=96, depths=(2, 2, 12, 2), drop_path_rate=0.3),
    'base_m2': dict(_MAMBA2, embed_dims=128, depths=(2, 2, 12, 2), drop_path_rate=0.3),
}
"""Sizes with Mamba-2 blocks, of which the code is published, and neither weights nor figures."""

_ALL_ARCHS = {**ARCHS, **MAMBA2_ARCHS}


class VSSBlock(nn.Module):
    """Residual SS2D and, where `mlp_ratio` > 0, residual MLP, both pre-norm."""

    def __init__(
        self,
        channels: int,
        mlp_ratio: float,
        drop_path: float,
        op: nn.Module,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.op = op
        self.drop_path = DropPath(drop_path)
        self.mlp = None
        if mlp_ratio > 0:
            self.norm2 = nn.LayerNorm(channels)
            self.mlp = Mlp(channels, int(mlp_ratio * channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, H, W, C)` to `(B, H, W, C)`."""
        x = x + self.drop_path(self.op(self.norm(x)))
        if self.mlp is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class PatchMerging(nn.Module):
    """Halve a grid by stacking the channels of each 2 x 2 square; odd sides are zero-padded at the bottom and right."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = Linear(4 * channels, 2 * channels, bias=False)
        nn.init.trunc_normal_(self.reduction.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, H, W, C)` to `(B, ceil(H/2), ceil(W/2), 2C)`."""
        _, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, 1, 0, 1))  # which an even side does not read; a test of its parity is one graph each
        squares = [x[:, row : height + row : 2, column : width + column : 2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(squares, dim=-1)))


def _conv_stem(in_channels: int, channels: int) -> nn.Sequential:
    """Two convolutions of stride 2. Positions in the sequence are the names in published weights."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1),
        ToChannelsLast(),
        nn.LayerNorm(channels // 2),
        ToChannelsFirst(),
        nn.GELU(),
        nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
        ToChannelsLast(),
        nn.LayerNorm(channels),
    )


def _patch_stem(in_channels: int, channels: int) -> nn.Sequential:
    """The vanilla model's: one convolution of size and stride 4."""
    return nn.Sequential(nn.Conv2d(in_channels, channels, 4, stride=4), ToChannelsLast(), nn.LayerNorm(channels))


def _conv_downsample(channels: int) -> nn.Sequential:
    return nn.Sequential(
        ToChannelsFirst(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        ToChannelsLast(),
        nn.LayerNorm(2 * channels),
    )


_STEMS = {'conv': _conv_stem, 'patch': _patch_stem}
_DOWNSAMPLES = {'conv': _conv_downsample, 'merge': PatchMerging}
_STEM_STRIDE = 4


class Stage(nn.Module):
    """Blocks of one resolution, then (in all but the last stage) the halving to the next."""

    def __init__(
        self,
        blocks: list[nn.Module],
        downsample: nn.Module | None,
        with_cp: bool,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.with_cp = with_cp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The stage's output before its downsample, `(B, H, W, C)`."""
        for block in self.blocks:
            x = recomputed(block, x) if self.with_cp else block(x)
        return x


@register_model
class VMamba(BaseBackbone):
    """VMamba: a four-stage backbone of visual state-space blocks.

    Args:
        arch: a row of `ARCHS` or `MAMBA2_ARCHS`, or a dict of its fields; those left out are those of 'tiny_s1l8'.
        in_channels: channels of the image.
        out_indices: stages whose normalised outputs are returned, ascending; -1 is the last. Stages behind the last
            one of them are not built, so every parameter that exists is used.
        drop_path_rate: of the last block, rising linearly from 0; None takes the architecture's.
        routes: 'cross', 'unidi', 'bidi' or 'cascade', see `mmvmamba.kernels.ss2d`.
        ssm_init: 'mamba', 'rand' or 'zero'; None takes 'mamba', and 'zero' for Mamba-2 blocks, which have no 'mamba'.
        with_cp: recompute blocks in the backward pass instead of storing their activations.
        frozen_stages: -1 trains everything; 0 freezes the stem; n also freezes the first n stages.
        backend: of the scan: 'auto', 'triton', 'cpu', 'torch' or 'reference'.
        init_cfg: mmengine's initialisation config.
        **fields: replace fields of the architecture: embed_dims, depths, d_state, dt_rank, ssm_ratio, conv_size,
            conv_bias, gated, mlp_ratio, stem ('conv' or 'patch'), downsample ('conv' or 'merge'), mamba2 (blocks whose
            scan has `dt_rank` heads, in plain PyTorch whatever the backend; they have no gate).

    Raises:
        TypeError, ValueError: an unknown name or a value out of range, by name.

    Source: Liu et al., arXiv 2401.10166. Parameter names are those of the published weights.
    """

    family = 'vmamba'

    def __init__(
        self,
        arch: str | Mapping = 'tiny_s1l8',
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float | None = None,
        routes: str = 'cross',
        ssm_init: str | None = None,
        with_cp: bool = False,
        frozen_stages: int = -1,
        backend: str = 'auto',
        init_cfg: Mapping | Sequence[Mapping] | None = None,
        **fields,
    ):
        super().__init__(init_cfg=init_cfg)
        name = type(self).__name__
        check_choice(name, 'routes', routes, PATTERNS)
        check_choice(name, 'backend', backend, ('auto', *BACKENDS))
        spec = architecture(name, arch, _ALL_ARCHS, 'tiny_s1l8', fields)
        ssm_init = self._checked_init(ssm_init, spec, routes)
        check_choice(name, 'stem', spec['stem'], _STEMS)
        check_choice(name, 'downsample', spec['downsample'], _DOWNSAMPLES)
        self.arch = arch
        self.in_channels = in_channels
        self.depths = tuple(spec['depths'])
        self.out_indices = check_out_indices(name, out_indices, len(self.depths))
        stages = self.out_indices[-1] + 1
        if spec['conv_size'] and spec['conv_size'] % 2 == 0:
            raise ValueError(
                f'{name}: conv_size={spec["conv_size"]!r}; expected an odd number, or 0 for no convolution'
            )

        rate = spec['drop_path_rate'] if drop_path_rate is None else drop_path_rate
        last = max(sum(self.depths) - 1, 1)
        drop_paths = [rate * i / last for i in range(sum(self.depths))]
        op, options = HeadsSS2D, {key: spec[key] for key in ('ssm_ratio', 'conv_size', 'conv_bias')}
        options['init'] = ssm_init
        if not spec['mamba2']:
            op, options = SS2D, dict(options, gated=spec['gated'], routes=routes, backend=backend)

        self.num_features = [spec['embed_dims'] * 2**i for i in range(stages)]
        self.patch_embed = _STEMS[spec['stem']](in_channels, spec['embed_dims'])
        self.layers = nn.ModuleList()
        for i, channels in enumerate(self.num_features):
            dt_rank = math.ceil(channels / 16) if spec['dt_rank'] == 'auto' else spec['dt_rank']
            first = sum(self.depths[:i])
            blocks = [
                VSSBlock(channels, spec['mlp_ratio'], drop_path, op(channels, spec['d_state'], dt_rank, **options))
                for drop_path in drop_paths[first : first + self.depths[i]]
            ]
            downsample = _DOWNSAMPLES[spec['downsample']](channels) if i < stages - 1 else None
            self.layers.append(Stage(blocks, downsample, with_cp))
        for i in self.out_indices:
            self.add_module(f'outnorm{i}', nn.LayerNorm(self.num_features[i]))
        self._freeze(frozen_stages, stages)

    def _checked_init(self, ssm_init: str | None, spec: dict, routes: str) -> str:
        """The initialisation, if the rest of the architecture fits its blocks."""
        name = type(self).__name__
        ssm_init = ('zero' if spec['mamba2'] else 'mamba') if ssm_init is None else ssm_init
        check_choice(name, 'ssm_init', ssm_init, SSM_INITS)
        if spec['mamba2'] and (spec['gated'] or routes != 'cross' or ssm_init == 'mamba'):
            raise ValueError(
                f'{name}: mamba2=True with gated={spec["gated"]!r}, routes={routes!r}, ssm_init={ssm_init!r}; expected '
                f"gated=False, routes='cross', ssm_init='rand' or 'zero'"
            )
        return ssm_init

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Number a parameter's layer, for layer-wise decay: 0 for the stem, then block by block, then all behind them.

        Args:
            param_name: of a parameter of this backbone, or of the model that has it.
            prefix: what stands before the names of this backbone's parameters.

        Returns:
            The number, and how many layers there are.
        """
        depths = [len(stage.blocks) for stage in self.layers]
        layers = sum(depths) + 2
        parts = param_name.removeprefix(prefix).split('.')
        if not param_name.startswith(prefix) or parts[0] not in ('patch_embed', 'layers'):
            return layers - 1, layers
        if parts[0] == 'patch_embed':
            return 0, layers
        stage = int(parts[1])
        if parts[2] == 'downsample':  # goes with the first block behind it
            return sum(depths[: stage + 1]) + 1, layers
        return sum(depths[:stage]) + int(parts[3]) + 1, layers

    def _output_norms(self) -> list[tuple[int, nn.Module]]:
        return [(i, getattr(self, f'outnorm{i}')) for i in self.out_indices]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Extract feature maps.

        Args:
            x: `(B, in_channels, H, W)`, H and W from 4 pixels up.

        Returns:
            For each of `out_indices` a contiguous map `(B, C_i, H_i, W_i)` of stride `4 * 2**i`.
        """
        check_image(type(self).__name__, x, self.in_channels, _STEM_STRIDE)
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))
        outs = []
        for i, stage in enumerate(self.layers):
            x = stage(x)
            if i in self.out_indices:
                # a copy: mmcv's RoIAlign reads memory as channels first whatever the strides say
                outs.append(getattr(self, f'outnorm{i}')(x).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(outs)


_OLD_NAMES = (
    (re.compile(r'^patch_embed\.proj\.'), 'patch_embed.0.'),
    (re.compile(r'^patch_embed\.norm\.'), 'patch_embed.2.'),
    (re.compile(r'\.ln_1\.'), '.norm.'),
    (re.compile(r'\.self_attention\.'), '.op.'),
    (re.compile(r'^(norm|head)\.(?=weight|bias)'), r'classifier.\1.'),
)


_CLASSIFIER_NORM = 'classifier.norm.'


def _translate(state_dict, expected) -> dict[str, torch.Tensor]:
    """Names of the first vanilla files to today's, and a classifier's norm to a backbone's that has this one alone.

    Backbones with several output norms start all of them fresh, as the published detectors do, whatever wrote the
    classifier's file.
    """
    renamed = {}
    for name, value in state_dict.items():
        for pattern, replacement in _OLD_NAMES:
            name = pattern.sub(replacement, name)
        renamed[name] = value
    last = f'outnorm{_stages(renamed) - 1}.'
    ours = _output_norms_in(expected)
    if ours == {last}:
        return {_replaced(name, _CLASSIFIER_NORM, last): value for name, value in renamed.items()}
    if len(ours) > 1 and _output_norms_in(renamed) == {last}:
        return {_replaced(name, last, _CLASSIFIER_NORM): value for name, value in renamed.items()}
    return renamed


def _replaced(name: str, start: str, other: str) -> str:
    return other + name.removeprefix(start) if name.startswith(start) else name


def _output_norms_in(state_dict) -> set[str]:
    return {f'{name.partition(".")[0]}.' for name in state_dict if name.startswith('outnorm')}


def _stages(state_dict) -> int:
    """How many stages the names of parameters speak of."""
    return 1 + max((int(m.group(1)) for m in map(re.compile(r'layers\.(\d+)\.').match, state_dict) if m), default=-1)


def _measure(state_dict) -> dict | None:
    names = ('norm.weight', 'op.out_norm.weight', 'op.A_logs')
    shapes = [tuple(getattr(state_dict.get(f'layers.0.blocks.0.{name}'), 'shape', ())) for name in names]
    if [len(shape) for shape in shapes] != [1, 1, 2]:
        return None
    (channels,), (inner,), (_, states) = shapes
    blocks = {m.groups() for m in map(re.compile(r'layers\.(\d+)\.blocks\.(\d+)\.').match, state_dict) if m}
    stages = 1 + max(int(stage) for stage, _ in blocks)
    depths = tuple(sum(int(stage) == i for stage, _ in blocks) for i in range(stages))
    measures = dict(embed_dims=channels, depths=depths, ssm_ratio=inner / channels, d_state=states)
    skips = state_dict.get('layers.0.blocks.0.op.Ds')
    if skips is None or skips.ndim != 3:
        return measures
    heads = states  # Mamba-2 has one decay a head, whatever its states
    rows = state_dict['layers.0.blocks.0.op.x_proj_weight'].shape[1]
    return dict(measures, d_state=(rows - heads) // 2, mamba2=True)


checkpoints.register(checkpoints.Family('vmamba', 'VMamba', _ALL_ARCHS, _measure, _translate))
