"""What every kernel that scans forward reads, once a program and once a tile."""

from typing import NamedTuple

import triton
import triton.language as tl

from .numerics import LN2, LOG2E
from .routes import pixels_of
from .steps import step_weights, time_steps
from .tiles import hidden_zero, load_tile, row_pointers


class Inputs(NamedTuple):
    """A program's inputs.

    Attributes:
        p_x: pointers `(BD,)` to x at the image's first pixel.
        p_projected: pointer to its projections for this walk.
        p_steps: to weights `(K, D, R)`; with R = 0 pointers `(BD,)` to the ready time steps of the first pixel.
        p_A: pointers `(BD,)` to the first state's A.
        A: rows `(BD,)` of few states; of many they are read when they are needed.
        bias: `(BD,)`, in units of log 2.
        weights: blocks `(RB, BD)`, or nothing where they are read for every tile.
    """

    p_x: tl.tensor
    p_projected: tl.tensor
    p_steps: tl.tensor
    p_A: tl.tensor
    A: tl.tuple
    bias: tl.tensor
    weights: tl.tuple


class Tile(NamedTuple):
    """A tile of inputs.

    Attributes:
        u: rows `(BD,)` of time steps, in units of log 2.
        xs: rows of x.
        uxs: rows of x times time step: of few states over ln 2: there B is multiplied by it, which channels share.
        pixel: `(BL,)` of what is read.
        pixel_out: `(BL,)` of what is written.
        mask: `(BL, BD)` of what there is.
    """

    u: tl.tuple
    xs: tl.tuple
    uxs: tl.tuple
    pixel: tl.tensor
    pixel_out: tl.tensor
    mask: tl.tensor


@triton.jit
def inputs_of(p_x, p_projected, p_steps, p_bias, p_A, at, SPEC: tl.constexpr):
    """The `Inputs` of a program at `at`, a `Place`."""
    N: tl.constexpr = SPEC.N
    bias = tl.load(p_bias + at.o_kd, mask=at.m_d, other=0.0) * LOG2E  # (BD,)
    weights = ()
    if not SPEC.READS_WEIGHTS:
        weights = step_weights(p_steps, at.i_k * SPEC.D, at.i_d, SPEC)
    p_A += at.o_kd * N
    A = ()
    if not SPEC.MANY:
        for n in tl.static_range(N):
            A = A + (tl.load(p_A + n, mask=at.m_d, other=0.0),)  # (BD,)
    return Inputs(
        p_x=p_x + at.o_x,
        p_projected=p_projected + (at.pixel * SPEC.K + at.i_k) * SPEC.COLUMNS_OF_WALK,
        p_steps=p_steps if SPEC.R > 0 else p_steps + (at.pixel * SPEC.K + at.i_k) * SPEC.D + at.o_d,
        p_A=p_A,
        A=A,
        bias=bias,
        weights=weights,
    )


@triton.jit
def load_inputs(start, inputs, at, SPEC: tl.constexpr, RAGGED: tl.constexpr):
    """The `Tile` of BL positions from `start`; RAGGED: the last ones, fewer than BL, of which the last is repeated."""
    BL: tl.constexpr = SPEC.BL
    BD: tl.constexpr = SPEC.BD
    weights = inputs.weights
    if SPEC.READS_WEIGHTS or (RAGGED and SPEC.READS_WEIGHTS_ONCE_MORE):
        weights = step_weights(inputs.p_steps, at.i_k * SPEC.D + hidden_zero(start), at.i_d, SPEC)
    last = at.end - 1 - start
    o_l = tl.arange(0, BL)
    mask = at.m_d[None, :]
    if RAGGED:
        mask = mask & (o_l <= last)[:, None]
        o_l = tl.minimum(o_l, last)
    pixel = pixels_of(start, o_l, at.route, SPEC)
    pixel_out = pixels_of(start, o_l, at.route_out, SPEC)
    u = time_steps(pixel, inputs.p_projected, inputs.p_steps, weights, inputs.bias, at.m_d, SPEC)
    p_x = row_pointers(inputs.p_x, pixel * SPEC.X_STRIDE, SPEC.VECTOR)
    xs = load_tile(p_x, at.m_d[None, :], BL, BD)  # (BL, BD)
    uxs = ()
    for i in tl.static_range(BL):
        uxs = uxs + (u[i] * xs[i] * LN2 if SPEC.MANY else u[i] * xs[i],)
    return Tile(u=u, xs=xs, uxs=uxs, pixel=pixel, pixel_out=pixel_out, mask=mask)
