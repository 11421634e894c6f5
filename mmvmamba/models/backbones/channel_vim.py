"""FastChannelVim, for images of many channels such as cell microscopy's, and ChannelVim, its unpooled baseline.

Paper: Kapse et al., "Fast Vision Mamba: Pooling Spatial Dimensions for Accelerated Processing", arXiv 2502.00594. This
file is an implementation of its own whose parameter names are the published ones. Every patch has a token for each of
the image's channels; here such a channel is called a plane where channels of features are near.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from mmvmamba import checkpoints
from mmvmamba.kernels.dispatch import BACKENDS
from mmvmamba.kernels.pooled_scan.op import AXES, PLANES, POOLS
from mmvmamba.registry import register_model

from ..arguments import check_out_indices
from ..layers.class_token import insert_token, token_place
from ..layers.positions import resize_positions
from ..layers.precision import widened
from .columnar import ARCHS, ColumnarBackbone, build_blocks

OUT_TYPES = ('avg_featmap', 'featmap', 'dense', 'cls_token')
MERGES = ('mean', 'concat')


class PlanePatchEmbed(nn.Module):
    """One linear map per square patch of a plane, the same for all planes, and a vector for every plane."""

    def __init__(
        self,
        planes: int,
        channels: int,
        patch_size: int,
    ):
        super().__init__()
        self.patch_size = patch_size
        side = (1, patch_size, patch_size)
        self.proj = nn.Conv3d(1, channels, side, stride=side)  # PyTorch's default initialisation, as published
        self.channel_embed = nn.Embedding(planes, channels)
        nn.init.normal_(self.channel_embed.weight, std=0.02)

    def forward(self, x: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
        """`(B, K, H, W)` and which planes these are, `(K,)` or `(B, K)`, to `(B, H', W', K, C)`."""
        # padding that does not depend on the size: the convolution leaves out what makes no whole patch
        x = F.pad(x, (0, self.patch_size - 1, 0, self.patch_size - 1))
        weight = self.proj.weight[:, :, 0]
        tokens = F.conv2d(x.flatten(0, 1)[:, None], weight, self.proj.bias, stride=self.patch_size)
        tokens = tokens.unflatten(0, x.shape[:2]).permute(0, 3, 4, 1, 2)
        embedding = self.channel_embed(planes)
        return tokens + (embedding if planes.ndim == 1 else embedding[:, None, None])


@register_model
class FastChannelVim(ColumnarBackbone):
    """FastVim with a token for every patch and channel of an image; lines are pooled, channels are not.

    In training a random choice of channels is drawn every forward call, from PyTorch's generator of the CPU: as many as
    a uniform draw from 1 to all says. With `ReproducibleRandomness`, which our configs have, the draw depends on seed,
    iteration and rank: a resumed run repeats it, and ranks draw apart. Without that hook ranks that were seeded alike
    draw alike as long as they draw equally often, as in the published code.

    Args:
        arch: a row of FastVim's `ARCHS`, or a dict of its fields; those left out are those of 'small'.
        img_size: pixels a side, or (H, W), of the images that the position embedding belongs to. Any other size runs
            as well: the embedding is interpolated to its grid.
        patch_size: pixels a side of a patch; None takes the architecture's. Published: 16 and 8.
        in_channels: channels that the model knows.
        channels: which of them the images have, ascending or not, where that is not said call by call. None: all.
        sample_channels: draw channels in training.
        sort_channels: keep drawn channels in their order.
        out_type: 'avg_featmap': the mean of all tokens, `(B, C)`, normalised by `norm_f`; 'featmap': a map of the same,
            whose mean over the image it is; 'dense': maps of what single blocks add, each layer-normalised, for
            detection and segmentation; 'cls_token' (unpooled): the vector of a class token in the middle of all tokens.
        merge: of a map's channels: their mean, or 'concat': one behind another, C * in_channels features. Channels
            that an image lacks are then zeros.
        out_indices: where dense, the blocks whose outputs are returned, ascending; -1 is the last. Blocks behind the
            last one of them are not built.
        drop_path_rate: of the last block's output, rising linearly from 0; None takes the architecture's.
        pool: 'mean' or 'max' over a line, or None to scan all tokens, which never rotates.
        scan_path: 'row' or 'column', the axis of the first block.
        rotate: odd blocks take the other axis (pooled models only).
        planes: 'inner' (published): the tokens of a patch follow one another in the sequence; 'outer': channel after
            channel.
        with_cp: recompute blocks in the backward pass instead of storing their activations.
        frozen_stages: -1 trains everything; 0 freezes what comes before the blocks; n also freezes the first n blocks.
        backend: of the scan: 'auto', 'triton', 'cpu', 'torch' or 'reference'.
        init_cfg: mmengine's initialisation config.
        **fields: replace fields of the architecture: embed_dims, depth, d_state, expand, d_conv, dt_rank.

    Raises:
        TypeError, ValueError: an unknown name or a value out of range, by name.
        CheckpointError: on loading weights of another patch size, or a position embedding whose grid is unknown.

    Source: Kapse et al., arXiv 2502.00594. Parameter names are those of the published weights.
    """

    family = 'channel_vim'
    choices: ClassVar = dict(
        out_type=OUT_TYPES, merge=MERGES, pool=POOLS, scan_path=AXES, planes=PLANES, backend=('auto', *BACKENDS)
    )

    def __init__(
        self,
        arch: str | Mapping = 'small',
        img_size: int | Sequence[int] = 224,
        patch_size: int | None = None,
        in_channels: int = 8,
        channels: Sequence[int] | None = None,
        sample_channels: bool = True,
        sort_channels: bool = True,
        out_type: str = 'avg_featmap',
        merge: str = 'mean',
        out_indices: int | Sequence[int] = (-1,),
        drop_path_rate: float | None = None,
        pool: str | None = 'mean',
        scan_path: str = 'row',
        rotate: bool = True,
        planes: str = 'inner',
        with_cp: bool = False,
        frozen_stages: int = -1,
        backend: str = 'auto',
        init_cfg: Mapping | Sequence[Mapping] | None = None,
        **fields,
    ):
        super().__init__(init_cfg=init_cfg)
        name = type(self).__name__
        self._check_choices(out_type=out_type, merge=merge, pool=pool, scan_path=scan_path, planes=planes)
        self._check_choices(backend=backend)
        if out_type == 'cls_token' and pool is not None:
            raise ValueError(f"{name}: out_type='cls_token' needs pool=None; a pooled model has no class token")
        spec = self._describe(arch, 'small', img_size, patch_size, fields)
        width = spec['embed_dims']
        self.in_channels = in_channels
        self.channels = None if channels is None else tuple(channels)
        self.sample_channels = sample_channels
        self.sort_channels = sort_channels
        self.out_type = out_type
        self.merge = merge
        self.out_indices = check_out_indices(name, out_indices, self.depth)
        if out_type != 'dense' and self.out_indices != (self.depth - 1,):
            raise ValueError(f'{name}: out_indices={out_indices!r}; out_type={out_type!r} comes behind the last block')
        self.scan_path = scan_path
        self.with_cp = with_cp
        rate = spec['drop_path_rate'] if drop_path_rate is None else drop_path_rate
        maps = out_type in ('featmap', 'dense')
        self.num_features = [width * (in_channels if maps and merge == 'concat' else 1)] * len(self.out_indices)
        self.patch_embed = PlanePatchEmbed(in_channels, width, self.patch_size)
        self._add_embeddings(width, math.prod(self.grid), out_type == 'cls_token')
        path = dict(
            scan_path='row' if out_type == 'cls_token' else scan_path,  # a sequence is no grid
            rotate=rotate and pool is not None,
        )
        count = self.out_indices[-1] + 1
        self.layers = build_blocks(spec, count, rate, **path, pool=pool, planes=planes, backend=backend)
        self._add_outputs(width, rate)
        self._check_channels(self.channels)
        self._freeze(frozen_stages, count)

    def _check_channels(self, channels) -> None:
        if channels is None:
            return
        known = all(isinstance(c, int) and 0 <= c < self.in_channels for c in channels)
        if not channels or not known or len(set(channels)) != len(channels):
            raise ValueError(
                f'{type(self).__name__}: channels={channels!r}; expected different numbers from 0 to '
                f'{self.in_channels - 1}'
            )

    def forward(
        self, x: torch.Tensor, channels: Sequence[int] | torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Extract features.

        Args:
            x: `(B, K, H, W)`, H and W from one patch up.
            channels: which K of the model's channels these are; None: those that the constructor was given, by default
                all in order. Where images of a batch differ, a tensor `(B, K)` of integers: -1 marks a plane that an
                image lacks, whatever x has in its place. Each image then gets the result that it would get alone,
                without its missing planes; the host waits for the tensor. Given channels are used as they are:
                nothing is drawn.

        Returns:
            For each of `out_indices` a contiguous map `(B, C, ceil(H / patch_size), ceil(W / patch_size))`, or one
            vector `(B, C)` as `out_type` says.
        """
        if isinstance(channels, torch.Tensor) and channels.ndim == 2:
            return self._of_groups(x, channels)
        drawn = channels is None and self.training and self.sample_channels
        chosen = self._chosen(x, channels)
        if drawn:
            kept = self._drawn(len(chosen))
            x, chosen = x[:, kept.to(x.device)], [chosen[i] for i in kept.tolist()]
        return self._extract(x, torch.tensor(chosen, device=x.device))

    def _chosen(self, x: torch.Tensor, channels) -> list[int]:
        """Which channels the planes of x are."""
        if channels is None:
            channels = range(self.in_channels) if self.channels is None else self.channels
        channels = channels.tolist() if isinstance(channels, torch.Tensor) else list(channels)
        self._check_channels(channels)
        self._check_image(x, len(channels))
        return channels

    def _check_image(self, x: torch.Tensor, planes: int) -> None:
        name = type(self).__name__
        if x.ndim != 4 or x.shape[1] != planes:
            raise ValueError(
                f'{name}: input has shape {tuple(x.shape)}; expected (B, {planes}, H, W), one plane for each channel; '
                f'channels=[...] says which of the {self.in_channels} an image has'
            )
        if min(x.shape[2:]) < self.patch_size:
            raise ValueError(
                f'{name}: input of {x.shape[2]} x {x.shape[3]} pixels is too small; expected at least '
                f'{self.patch_size} x {self.patch_size}'
            )
        if not x.is_floating_point():
            raise TypeError(f'{name}: input has dtype {x.dtype}; expected floating point (normalise the image first)')

    def _drawn(self, planes: int) -> torch.Tensor:
        """Numbers of the planes that a training step uses."""
        count = int(torch.randint(1, planes + 1, ()))
        kept = torch.randperm(planes)[:count]
        return kept.sort().values if self.sort_channels else kept

    def _of_groups(self, x: torch.Tensor, channels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Images with as many planes as each other go through together: their sequences are as long."""
        rows = [[(j, c) for j, c in enumerate(row) if c >= 0] for row in channels.tolist()]
        if channels.shape != x.shape[:2] or not all(rows):
            raise ValueError(
                f'{type(self).__name__}: channels has shape {tuple(channels.shape)}; expected {tuple(x.shape[:2])} to '
                f'fit the input, with a channel that is not -1 in every row'
            )
        self._check_image(x, channels.shape[1])
        outs = None
        for count in sorted(set(map(len, rows))):
            images = [i for i, row in enumerate(rows) if len(row) == count]
            for i in images:
                self._check_channels([c for _, c in rows[i]])
            places = torch.tensor([[j for j, _ in rows[i]] for i in images], device=x.device)
            planes = torch.tensor([[c for _, c in rows[i]] for i in images], device=x.device)
            index = torch.tensor(images, device=x.device)
            some = self._extract(x[index[:, None], places], planes)
            if outs is None:
                outs = [out.new_zeros(len(x), *out.shape[1:]) for out in some]
            outs = [whole.index_copy(0, index, out) for whole, out in zip(outs, some, strict=True)]
        return self._extract(x, channels) if outs is None else tuple(outs)

    def _extract(self, x: torch.Tensor, planes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = self.patch_embed(x, planes)
        positions = resize_positions(self.pos_embed, self.grid, hidden.shape[1:3])
        hidden = (hidden + positions[:, :, :, None]).contiguous()
        if self.cls_token is not None:
            hidden = self._with_token(hidden)
        outs, residual = self._through_blocks(hidden)
        if self.out_type == 'dense':
            norms = (norm for _, norm in self._output_norms())
            return tuple(self._as_map(norm(out), planes) for norm, out in zip(norms, outs, strict=True))
        total = residual + self.drop_path(widened(outs[0]))
        if self.out_type == 'cls_token':
            total = total[:, 0, token_place(total.shape[2])]
        out = self.norm_f(total.to(self.norm_f.weight.dtype))
        if self.out_type == 'featmap':
            return (self._as_map(out, planes),)
        return (out if self.out_type == 'cls_token' else out.flatten(1, 3).mean(1),)

    def _with_token(self, hidden: torch.Tensor) -> torch.Tensor:
        """`(B, H, W, K, C)` as a line `(B, 1, L + 1, C)`; in its middle the class token, which has no position."""
        if self.scan_path == 'column':
            hidden = hidden.transpose(1, 2)
        if self.layers[0].mixer.planes == 'outer':
            hidden = hidden.movedim(3, 1)
        return insert_token(hidden.flatten(1, 3), self.cls_token)[:, None]

    def _as_map(self, tokens: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
        """`(B, H, W, K, C)` to a contiguous `(B, C, H, W)`, or `(B, C * in_channels, H, W)`."""
        if self.merge == 'mean':
            return tokens.mean(3).permute(0, 3, 1, 2).contiguous()
        batch, height, width, _, channels = tokens.shape
        planes = planes.expand(batch, -1)[:, None, None, :, None].expand_as(tokens)
        whole = tokens.new_zeros(batch, height, width, self.in_channels, channels).scatter(3, planes, tokens)
        return whole.flatten(3).permute(0, 3, 1, 2).contiguous()


@register_model
class ChannelVim(FastChannelVim):
    """FastChannelVim's unpooled baseline: a scan over all tokens of all channels, and a class token.

    Args:
        **arguments: of `FastChannelVim`; other defaults: `pool=None`, `out_type='cls_token'`.
    """

    def __init__(self, *arguments, pool: str | None = None, out_type: str = 'cls_token', **more):
        super().__init__(*arguments, pool=pool, out_type=out_type, **more)


def _translate(state_dict, expected) -> dict[str, torch.Tensor]:
    return dict(state_dict)


def _measure(state_dict) -> dict | None:
    patches = state_dict.get('patch_embed.proj.weight')
    numbers = {m.group(1) for m in map(re.compile(r'layers\.(\d+)\.').match, state_dict) if m}
    if patches is None or 'patch_embed.channel_embed.weight' not in state_dict:
        return None
    return dict(embed_dims=patches.shape[0], depth=len(numbers))


checkpoints.register(
    checkpoints.Family('channel_vim', 'FastChannelVim', ARCHS, _measure, _translate, ('state_dict_ema', 'state_dict'))
)
