"""Parameters of both directions one behind the other, as the scan that all operators share reads them: one launch."""

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
def _stack(
    p_forth_proj, p_forth_weight, p_forth_bias, p_forth_A, p_forth_skip,
    p_back_proj, p_back_weight, p_back_bias, p_back_A, p_back_skip, p_y,
    PROJ: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, A: tl.constexpr, SKIP: tl.constexpr,
    AT_WEIGHT: tl.constexpr, AT_BIAS: tl.constexpr, AT_A: tl.constexpr, AT_SKIP: tl.constexpr, ZERO: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Ten tensors of so many numbers into `y`, float32, the second direction's behind the first's. ZERO: no skips."""
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    _copy(p_forth_proj, p_y, o, PROJ)
    _copy(p_back_proj, p_y + PROJ, o, PROJ)
    _copy(p_forth_weight, p_y + AT_WEIGHT, o, WEIGHT)
    _copy(p_back_weight, p_y + AT_WEIGHT + WEIGHT, o, WEIGHT)
    _copy(p_forth_bias, p_y + AT_BIAS, o, BIAS)
    _copy(p_back_bias, p_y + AT_BIAS + BIAS, o, BIAS)
    _copy(p_forth_A, p_y + AT_A, o, A)
    _copy(p_back_A, p_y + AT_A + A, o, A)
    if ZERO:
        tl.store(p_y + AT_SKIP + o, tl.zeros((BLOCK,), tl.float32), mask=o < 2 * SKIP)
    else:
        _copy(p_forth_skip, p_y + AT_SKIP, o, SKIP)
        _copy(p_back_skip, p_y + AT_SKIP + SKIP, o, SKIP)


class Stacking(NamedTuple):
    """`_stack` as sizes fix it: numbers in all, and of every part its shape, strides and place."""

    size: int
    parts: tuple
    launch: Launch


def stacking(channels: int, rank: int, states: int, zero: bool) -> Stacking:
    """How to launch `_stack`; `zero` for skips of zero."""
    columns = rank + 2 * states
    shapes = ((2, columns, channels), (2, channels, rank), (2 * channels,), (2 * channels, states), (2 * channels,))
    sizes = [torch.Size(shape).numel() // 2 for shape in shapes]
    unit = ALIGNMENT // 4
    places = [0]
    for size in sizes:
        places.append(places[-1] + unit * triton.cdiv(2 * size, unit))
    strides = ((columns * channels, channels, 1), (channels * rank, rank, 1), (1,), (states, 1), (1,))
    constants = dict(zip(('PROJ', 'WEIGHT', 'BIAS', 'A', 'SKIP'), sizes, strict=True))
    constants.update(zip(('AT_WEIGHT', 'AT_BIAS', 'AT_A', 'AT_SKIP'), places[1:], strict=False))
    grid = triton.cdiv(max(*sizes, 2 * channels), BLOCK)
    launch = Launch(_stack, grid, ZERO=zero, BLOCK=BLOCK, num_warps=WARPS, **constants)
    return Stacking(places[-1], tuple(zip(shapes, strides, places, strict=False)), launch)


def stack(plan: Stacking, forth, back) -> list[torch.Tensor]:
    """Projections `(2, R + 2N, D)`, `(2, D, R)`, biases `(2D,)`, A `(2D, N)` and skips `(2D,)`, float32."""
    y = forth.A.new_empty(plan.size, dtype=torch.float32)
    tensors = ((way.x_proj_weight, way.dt_weight, way.dt_bias, way.A, way.Ds) for way in (forth, back))
    plan.launch((*next(tensors), *next(tensors), y))
    return [y.as_strided(*part) for part in plan.parts]
