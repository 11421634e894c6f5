"""Parameters of both directions one behind the other, as the kernels read them: one launch."""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..shared_triton.launch import ALIGNMENT, Launch

BLOCK, WARPS = 1024, 4
"""Numbers of a tensor that a program copies, and its warps."""


@triton.jit
def _copy(p_from, p_to, o, SIZE: tl.constexpr):
    tl.store(p_to + o, tl.load(p_from + o, mask=o < SIZE, other=0.0).to(tl.float32), mask=o < SIZE)


@triton.jit
def _copy_way(p_taps, p_bias, p_skip, p_to, o, D: tl.constexpr, KS: tl.constexpr):
    """Taps `(D, 1, KS)` as KS rows of D, and behind them bias and skip."""
    taps = tl.load(p_taps + o % D * KS + o // D, mask=o < KS * D, other=0.0)
    tl.store(p_to + o, taps.to(tl.float32), mask=o < KS * D)
    _copy(p_bias, p_to + KS * D, o, D)
    _copy(p_skip, p_to + (KS + 1) * D, o, D)


@triton.jit
def _stack(
    p_forth_proj,
    p_forth_weight,
    p_forth_bias,
    p_forth_A,
    p_forth_skip,
    p_forth_taps,
    p_forth_taps_bias,
    p_back_proj,
    p_back_weight,
    p_back_bias,
    p_back_A,
    p_back_skip,
    p_back_taps,
    p_back_taps_bias,
    p_y,
    D: tl.constexpr,
    KS: tl.constexpr,
    PROJ: tl.constexpr,
    WEIGHT: tl.constexpr,
    A: tl.constexpr,
    AT_WEIGHT: tl.constexpr,
    AT_BIAS: tl.constexpr,
    AT_A: tl.constexpr,
    AT_SKIP: tl.constexpr,
    AT_WAYS: tl.constexpr,
    ZERO: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every tensor of one direction and behind it the other's, of so many numbers each, to its place in `y`, float32.

    ZERO: skips of zero. Those of the parameters are among the ways `(2, KS + 2, D)` as well.
    """
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    _copy(p_forth_proj, p_y, o, PROJ)
    _copy(p_back_proj, p_y + PROJ, o, PROJ)
    _copy(p_forth_weight, p_y + AT_WEIGHT, o, WEIGHT)
    _copy(p_back_weight, p_y + AT_WEIGHT + WEIGHT, o, WEIGHT)
    _copy(p_forth_bias, p_y + AT_BIAS, o, D)
    _copy(p_back_bias, p_y + AT_BIAS + D, o, D)
    _copy(p_forth_A, p_y + AT_A, o, A)
    _copy(p_back_A, p_y + AT_A + A, o, A)
    _copy_way(p_forth_taps, p_forth_taps_bias, p_forth_skip, p_y + AT_WAYS, o, D, KS)
    _copy_way(p_back_taps, p_back_taps_bias, p_back_skip, p_y + AT_WAYS + (KS + 2) * D, o, D, KS)
    if ZERO:
        tl.store(p_y + AT_SKIP + o, tl.zeros((BLOCK,), tl.float32), mask=o < 2 * D)
    else:
        _copy(p_forth_skip, p_y + AT_SKIP, o, D)
        _copy(p_back_skip, p_y + AT_SKIP + D, o, D)


class Stacking(NamedTuple):
    """`_stack` as sizes fix it: numbers in all, and of every part its shape, strides and place."""

    size: int
    parts: tuple
    launch: Launch


class Stacked(NamedTuple):
    """Parameters of both directions, float32.

    Attributes:
        projection: `(2, R + 2N, D)`.
        weight: of the time steps, `(2, D, R)`.
        bias: of the time steps, `(2D,)`.
        A: `(2D, N)`.
        skip: `(2D,)`; zero where lines are pooled, as the skip is then the tokens' own.
        ways: taps of the convolution, its bias and the skip, `(2, KS + 2, D)`.
    """

    projection: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    A: torch.Tensor
    skip: torch.Tensor
    ways: torch.Tensor


def stacking(channels: int, rank: int, states: int, width: int, zero: bool) -> Stacking:
    """How to launch `_stack`; `width` of the convolutions, `zero` for skips of zero."""
    columns = rank + 2 * states
    shapes = Stacked(
        projection=(2, columns, channels),
        weight=(2, channels, rank),
        bias=(2 * channels,),
        A=(2 * channels, states),
        skip=(2 * channels,),
        ways=(2, width + 2, channels),
    )
    unit = ALIGNMENT // 4
    sizes = [math.prod(shape) for shape in shapes]
    places = [0]
    for size in sizes:
        places.append(places[-1] + unit * triton.cdiv(size, unit))
    halves = Stacked(*(size // 2 for size in sizes))
    at = Stacked(*places[:-1])
    launch = Launch(
        _stack,
        triton.cdiv(max(*halves, 2 * channels), BLOCK),
        **dict(D=channels, KS=width, PROJ=halves.projection, WEIGHT=halves.weight, A=halves.A),
        **dict(AT_WEIGHT=at.weight, AT_BIAS=at.bias, AT_A=at.A, AT_SKIP=at.skip, AT_WAYS=at.ways),
        **dict(ZERO=zero, BLOCK=BLOCK, num_warps=WARPS),
    )
    strides = [tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))) for shape in shapes]
    return Stacking(places[-1], tuple(zip(shapes, strides, places, strict=False)), launch)


def stack(plan: Stacking, forth, back) -> Stacked:
    """The parameters of two `Direction`s."""
    y = forth.A.new_empty(plan.size, dtype=torch.float32)
    arguments = dict(
        p_forth_proj=forth.x_proj_weight,
        p_forth_weight=forth.dt_weight,
        p_forth_bias=forth.dt_bias,
        p_forth_A=forth.A,
        p_forth_skip=forth.Ds,
        p_forth_taps=forth.conv_weight,
        p_forth_taps_bias=forth.conv_bias,
        p_back_proj=back.x_proj_weight,
        p_back_weight=back.dt_weight,
        p_back_bias=back.dt_bias,
        p_back_A=back.A,
        p_back_skip=back.Ds,
        p_back_taps=back.conv_weight,
        p_back_taps_bias=back.conv_bias,
        p_y=y,
    )
    plan.launch.start(arguments)
    return Stacked(*[y.as_strided(*part) for part in plan.parts])
