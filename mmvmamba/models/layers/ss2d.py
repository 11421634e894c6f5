"""SS2D: parameters and one operator call each for convolution and scan."""

import torch
from torch import nn
from torch.nn import functional as F

from mmvmamba.kernels import depthwise_conv_silu, ss2d_norm

from . import ssm_init
from .linear import Linear
from .precision import widened

_ROUTES = 4


class SS2D(nn.Module):
    """Project, convolve, scan the grid along four routes, normalise, gate, project back.

    Args:
        channels: input and output channels C.
        d_state: state size N.
        dt_rank: rank R of the step projection.
        ssm_ratio: inner channels D = ssm_ratio * C.
        conv_size: side of the depthwise convolution, odd; 0 leaves it out.
        conv_bias: whether that convolution has a bias.
        gated: multiply by SiLU of a second projection of the input.
        routes, backend: as in `mmvmamba.kernels.ss2d`.
        init: 'mamba', 'rand' or 'zero'.

    Source: Liu et al., arXiv 2401.10166, section 4.2. Parameter names are those of the published weights.
    """

    def __init__(
        self,
        channels: int,
        d_state: int,
        dt_rank: int,
        ssm_ratio: float,
        conv_size: int,
        conv_bias: bool,
        gated: bool,
        routes: str = 'cross',
        init: str = 'mamba',
        backend: str = 'auto',
    ):
        super().__init__()
        inner = int(ssm_ratio * channels)
        self.gated = gated
        self.routes = routes
        self.backend = backend
        self.in_proj = Linear(channels, 2 * inner if gated else inner, bias=False)
        self.conv2d = None
        if conv_size:
            padding = conv_size // 2
            self.conv2d = nn.Conv2d(inner, inner, conv_size, padding=padding, groups=inner, bias=conv_bias)
        self.x_proj_weight = nn.Parameter(torch.empty(_ROUTES, dt_rank + 2 * d_state, inner))
        self.dt_projs_weight = nn.Parameter(ssm_init.dt_weight(init, _ROUTES, inner, dt_rank))
        self.dt_projs_bias = nn.Parameter(ssm_init.dt_bias(init, _ROUTES, inner))
        self.A_logs = nn.Parameter(ssm_init.a_logs(init, _ROUTES * inner, d_state))
        self.Ds = nn.Parameter(torch.ones(_ROUTES * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = Linear(inner, channels, bias=False)
        nn.init.uniform_(self.x_proj_weight, -(inner**-0.5), inner**-0.5)  # PyTorch's default of a linear
        for linear in (self.in_proj, self.out_proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, H, W, C)` to `(B, H, W, C)`."""
        x = self.in_proj(x)
        gate = None
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
        if self.conv2d is None:
            x = F.silu(x)
        else:
            x = depthwise_conv_silu(x, self.conv2d.weight, self.conv2d.bias, backend=self.backend)
        y = ss2d_norm(
            x,
            self.x_proj_weight,
            self.dt_projs_weight,
            self.dt_projs_bias,
            -torch.exp(widened(self.A_logs)),
            self.Ds,
            self.out_norm.weight,
            self.out_norm.bias,
            gate,
            eps=self.out_norm.eps,
            routes=self.routes,
            backend=self.backend,
        )
        return self.out_proj(y)
