"""What SS2D attends to: how much every patch contributes to a query patch, exactly, per route and summed."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from mmvmamba.kernels import depthwise_conv_silu
from mmvmamba.kernels.ss2d.routes import ROUTES, sequence
from mmvmamba.models.layers.ss2d import SS2D


class Contributions(NamedTuple):
    """How the output of SS2D at one patch is made of all patches.

    Attributes:
        weights: `(4, H, W, D)`: what a route multiplies a patch's value with before summing, decay included; at the
            query itself the skip weight is included too.
        products: `(4, H, W)`: the plain products `C . B` of query and patch, without decay and step.
        values: `(H, W, D)`: what is multiplied, the input of the scans.
        routes: the four routes in words.
    """

    weights: torch.Tensor
    products: torch.Tensor
    values: torch.Tensor
    routes: tuple[str, ...]

    def output(self) -> torch.Tensor:
        """`(D,)`: the sum of weights times values, which is SS2D's output at the query before its norm."""
        return (self.weights * self.values).sum((0, 1, 2))


@torch.no_grad()
def contributions(op: SS2D, x: torch.Tensor, query: tuple[int, int]) -> Contributions:
    """Take SS2D apart at one patch.

    Args:
        op: the layer; any route pattern but the cascade, whose second half mixes the first.
        x: its input, `(H, W, C)`.
        query: row and column of the patch.

    Returns:
        Weights in float64, see `Contributions`.

    Raises:
        ValueError: the cascade, or a query outside the grid.

    Source: Liu et al., arXiv 2401.10166, section 5 (attention and activation maps).
    """
    height, width = x.shape[:2]
    row, column = query
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f'contributions: query={query} lies outside the grid of {height} x {width} patches')
    if op.routes not in ROUTES:
        raise ValueError(f'contributions: routes={op.routes!r} mixes routes twice; expected one of {list(ROUTES)[:3]}')
    values = op.in_proj(x[None])
    if op.gated:
        values = values.chunk(2, dim=-1)[0]
    conv = op.conv2d
    values = (F.silu(values) if conv is None else depthwise_conv_silu(values, conv.weight, conv.bias)).double()
    A = -torch.exp(op.A_logs.double())
    states, (_, channels, rank) = A.shape[1], op.dt_projs_weight.shape
    weights = values.new_zeros(4, height, width, channels)
    products = values.new_zeros(4, height, width)
    for k, route in enumerate(ROUTES[op.routes]):
        own = slice(k * channels, (k + 1) * channels)
        projected = sequence(values, route.by_column)[0] @ op.x_proj_weight[k].double().T
        dts, Bs, Cs = projected.split([rank, states, states], dim=1)
        delta = F.softplus(dts @ op.dt_projs_weight[k].double().T + op.dt_projs_bias[k].double())
        place = column * height + row if route.by_column else row * width + column
        if route.reverse:  # positions that come before the query on this route
            before = slice(place, None)
            elapsed = delta.cumsum(0)[before] - delta[before] - (delta.cumsum(0)[place] - delta[place])
        else:
            before = slice(0, place + 1)
            elapsed = delta.cumsum(0)[place] - delta.cumsum(0)[before]
        line, product = values.new_zeros(height * width, channels), values.new_zeros(height * width)
        for n in range(states):
            line[before] += Cs[place, n] * torch.exp(A[own, n] * elapsed) * delta[before] * Bs[before, n, None]
        line[place] += op.Ds[own].double()
        product[before] = Bs[before] @ Cs[place]
        shape = (width, height) if route.by_column else (height, width)
        weights[k], products[k] = (
            t.unflatten(0, shape).transpose(0, 1) if route.by_column else t.unflatten(0, shape) for t in (line, product)
        )
    names = (f'{"columns" if r.by_column else "rows"}{", reversed" * r.reverse}' for r in ROUTES[op.routes])
    return Contributions(weights, products, values[0], tuple(names))


def layer_input(backbone: nn.Module, stage: int, block: int, image: torch.Tensor) -> tuple[SS2D, torch.Tensor]:
    """Run a VMamba on an image `(1, 3, H, W)` and catch what one SS2D layer gets: the layer and `(H, W, C)`.

    Raises:
        ValueError: no such stage or block.
    """
    depths = [len(layer.blocks) for layer in backbone.layers]
    if not (0 <= stage < len(depths) and 0 <= block < depths[stage]):
        raise ValueError(f'stage {stage}, block {block}: expected a stage of 0 to {len(depths) - 1}, blocks: {depths}')
    op = backbone.layers[stage].blocks[block].op
    caught = []
    handle = op.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0][0]))
    try:
        with torch.no_grad():
            backbone(image)
    finally:
        handle.remove()
    return op, caught[0]
