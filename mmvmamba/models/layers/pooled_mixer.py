"""FastVim's mixer: parameters and one operator call between two projections."""

import torch
from torch import nn

from mmvmamba.kernels import Direction, pooled_scan, pooled_scan_kept

from . import ssm_init
from .linear import Linear
from .precision import widened


class PooledMixer(nn.Module):
    """Project, scan the pooled lines of the grid in both directions, gate, project back.

    Args:
        channels: input and output channels C.
        d_state: state size N.
        dt_rank: rank R of the step projection.
        expand: inner channels D = expand * C.
        d_conv: taps of the causal depthwise convolution.
        norm_after_scan: layer-normalise the mean of both directions.
        axis, pool, scaling, planes, backend: as in `mmvmamba.kernels.pooled_scan`.
        consistent: as in `mmvmamba.kernels.pooled_scan_kept`.
        depth: blocks of the network; the output projection starts smaller by its square root.

    Source: Kapse et al., arXiv 2502.00594. Parameter names are those of the published weights: `_b` is backward.
    """

    def __init__(
        self,
        channels: int,
        d_state: int,
        dt_rank: int,
        expand: float,
        d_conv: int,
        norm_after_scan: bool = True,
        axis: str = 'row',
        pool: str | None = 'mean',
        scaling: float = 1.0,
        depth: int = 1,
        backend: str = 'auto',
        planes: str = 'inner',
        consistent: bool = False,
    ):
        super().__init__()
        inner = int(expand * channels)
        self.axis = axis
        self.pool = pool
        self.scaling = scaling
        self.backend = backend
        self.planes = planes
        self.consistent = consistent
        self.in_proj = Linear(channels, 2 * inner, bias=False)
        for suffix in ('', '_b'):
            self.add_module(f'conv1d{suffix}', nn.Conv1d(inner, inner, d_conv, groups=inner))
            self.add_module(f'x_proj{suffix}', nn.Linear(inner, dt_rank + 2 * d_state, bias=False))
            self.add_module(f'dt_proj{suffix}', nn.Linear(dt_rank, inner))
            dt_proj = getattr(self, f'dt_proj{suffix}')
            dt_proj.weight = nn.Parameter(ssm_init.dt_weight('mamba', 1, inner, dt_rank)[0])
            dt_proj.bias = nn.Parameter(ssm_init.dt_bias('mamba', 1, inner)[0])
        nn.init.zeros_(self.dt_proj_b.bias)  # as published: only the forward branch starts with small steps
        self.A_log = nn.Parameter(ssm_init.a_logs('mamba', inner, d_state))
        self.A_b_log = nn.Parameter(ssm_init.a_logs('mamba', inner, d_state))
        self.D = nn.Parameter(torch.ones(inner))
        self.D_b = nn.Parameter(torch.ones(inner))
        self.layernorm = nn.LayerNorm(inner) if norm_after_scan else None
        self.out_proj = Linear(inner, channels, bias=False)
        with torch.no_grad():  # PyTorch's default is Kaiming uniform with a = sqrt 5
            self.out_proj.weight /= depth**0.5

    def forward(
        self, x: torch.Tensor, places: torch.Tensor | None = None, grid: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """`(B, H, W, C)` or, with planes, `(B, H, W, K, C)` to the same shape.

        With `places (B, M)` of a grid's tokens that a mask has kept, `(B, M, C)`.
        """
        norm = self.layernorm
        xz = self.in_proj(x)
        parameters = (
            _direction(self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D),
            _direction(self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b),
            None if norm is None else norm.weight,
            None if norm is None else norm.bias,
        )
        options = dict(
            axis=self.axis, scaling=self.scaling, eps=1e-5 if norm is None else norm.eps, backend=self.backend
        )
        if places is None:
            y = pooled_scan(xz, *parameters, pool=self.pool, planes=self.planes, **options)
        else:
            y = pooled_scan_kept(xz, places, grid, *parameters, consistent=self.consistent, **options)
        return self.out_proj(y)


def _direction(
    conv: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear, a_log: torch.Tensor, skip: torch.Tensor
) -> Direction:
    A = -torch.exp(widened(a_log))
    return Direction(conv.weight, conv.bias, x_proj.weight, dt_proj.weight, dt_proj.bias, A, skip)
