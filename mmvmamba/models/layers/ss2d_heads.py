"""SS2D with Mamba-2's scan: one step and one decay for all channels of a head."""

import torch
from torch import nn
from torch.nn import functional as F

from mmvmamba.kernels.dispatch import full_precision
from mmvmamba.kernels.ss2d.routes import ROUTES, grid, sequence

from . import ssm_init
from .layout import ToChannelsFirst, ToChannelsLast
from .linear import Linear
from .precision import widened

_CHUNK = 64


class HeadsSS2D(nn.Module):
    """Project, convolve, scan the grid along four routes in heads, normalise, project back; plain PyTorch.

    Args:
        channels: input and output channels C.
        d_state: state size N.
        heads: R; the inner channels are shared out among them in order.
        ssm_ratio: inner channels D = ssm_ratio * C.
        conv_size: side of the depthwise convolution, odd; 0 leaves it out. GELU follows it.
        conv_bias: whether that convolution has a bias.
        init: 'rand' or 'zero'.

    Raises:
        ValueError: inner channels that are no multiple of the heads.

    Source: Dao and Gu, arXiv 2405.21060 (the scan), in the code of Liu et al., arXiv 2401.10166, who publish neither
    weights nor figures for it. Parameter names are theirs.
    """

    def __init__(
        self,
        channels: int,
        d_state: int,
        heads: int,
        ssm_ratio: float,
        conv_size: int,
        conv_bias: bool,
        init: str = 'zero',
    ):
        super().__init__()
        inner, routes = int(ssm_ratio * channels), len(ROUTES['cross'])
        if inner % heads:
            raise ValueError(f'HeadsSS2D: {inner} inner channels cannot be shared out among {heads} heads')
        self.in_proj = Linear(channels, inner, bias=False)
        self.conv2d = None
        if conv_size:
            convolution = nn.Conv2d(inner, inner, conv_size, padding=conv_size // 2, groups=inner, bias=conv_bias)
            self.conv2d = nn.Sequential(ToChannelsFirst(), convolution, ToChannelsLast())
        self.x_proj_weight = nn.Parameter(torch.empty(routes, heads + 2 * d_state, inner))
        self.dt_projs_bias = nn.Parameter(ssm_init.dt_bias(init, routes, heads))
        self.A_logs = nn.Parameter(ssm_init.a_logs(init, routes, heads))
        self.Ds = nn.Parameter(torch.ones(routes, heads, inner // heads))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = Linear(inner, channels, bias=False)
        nn.init.uniform_(self.x_proj_weight, -(inner**-0.5), inner**-0.5)  # PyTorch's default of a linear
        for linear in (self.in_proj, self.out_proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, H, W, C)` to `(B, H, W, C)`."""
        x = self.in_proj(x)
        x = F.gelu(x if self.conv2d is None else self.conv2d(x))
        with full_precision(x.device):
            y = F.layer_norm(self._scan(x), self.out_norm.normalized_shape, *self._norm(), self.out_norm.eps)
        return self.out_proj(y.to(x.dtype))

    def _norm(self) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(widened(parameter) for parameter in (self.out_norm.weight, self.out_norm.bias))

    def _scan(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of the four routes, `(B, H, W, D)` in float32 at least."""
        _, height, width, _ = x.shape
        x, skips = widened(x), widened(self.Ds)
        heads = skips.shape[1]
        states = (self.x_proj_weight.shape[1] - heads) // 2
        y = torch.zeros_like(x)
        for k, route in enumerate(ROUTES['cross']):
            walk = sequence(x, route.by_column)
            walk = walk.flip(1) if route.reverse else walk
            dt, Bs, Cs = F.linear(walk, widened(self.x_proj_weight[k])).split([heads, states, states], dim=2)
            dt = F.softplus(dt + widened(self.dt_projs_bias[k]))  # (B, L, R)
            u = walk.unflatten(2, (heads, -1))  # (B, L, R, P)
            out = chunked_scan(u * dt[..., None], -dt * widened(self.A_logs[k]).exp(), Bs, Cs) + skips[k] * u
            out = out.flatten(2)
            y = y + grid(out.flip(1) if route.reverse else out, route.by_column, height, width)
        return y


def chunked_scan(u, log_decay, Bs, Cs, chunk: int = _CHUNK) -> torch.Tensor:
    """Solve `h_t = exp(log_decay_t) h_{t-1} + u_t Bs_t^T`, `y_t = h_t Cs_t`; h starts at 0 and is `(P, N)` a head.

    Inside a chunk every output is a sum over the earlier inputs, as in attention; a short loop hands the chunks' end
    states on.

    Args:
        u: inputs `(B, L, R, P)`.
        log_decay: `(B, L, R)`, not positive.
        Bs: `(B, L, N)`, shared by all heads.
        Cs: `(B, L, N)`, shared by all heads.
        chunk: positions that are worked on at once, T.

    Returns:
        `(B, L, R, P)`.

    Source: Dao and Gu, arXiv 2405.21060, section 6.
    """
    length = u.shape[1]
    rest = -length % chunk  # positions behind the end add nothing and decay nothing
    u, log_decay, Bs, Cs = (
        F.pad(t, (0, 0) * (t.ndim - 2) + (0, rest)).unflatten(1, (-1, chunk)) for t in (u, log_decay, Bs, Cs)
    )
    total = log_decay.cumsum(2)  # (B, S, T, R)
    between = total[:, :, :, None] - total[:, :, None]  # (B, S, T, T, R): from a position to a later one
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=u.device).tril()
    decay = between.masked_fill(~later[..., None], -torch.inf).exp()
    y = torch.einsum('bstu,bstur,bsurp->bstrp', Cs @ Bs.transpose(2, 3), decay, u)

    to_end = (total[:, :, -1:] - total).exp()
    chunk_states = torch.einsum('bstn,bstr,bstrp->bsrpn', Bs, to_end, u)
    state, starts = torch.zeros_like(chunk_states[:, 0]), []
    for s in range(u.shape[1]):
        starts.append(state)
        state = state * total[:, s, -1].exp()[..., None, None] + chunk_states[:, s]
    y = y + torch.einsum('bstn,bstr,bsrpn->bstrp', Cs, total.exp(), torch.stack(starts, dim=1))
    return y.flatten(1, 2)[:, :length]
