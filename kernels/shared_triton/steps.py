"""Time steps of a tile: projected from R numbers a pixel, or read where they are ready."""

import triton
import triton.language as tl

from .numerics import INTERPRETED, LOG2E
from .recurrence import time_step
from .tiles import channel_order, load_tile, product_rows, row_pointers


@triton.jit
def rounded(tile, SPEC: tl.constexpr):
    """A matrix product's operand. The interpreter cannot multiply bfloat16, so there only the rounding takes place."""
    tile = tile.to(tl.bfloat16 if SPEC.OPERAND == 'bf16' else tl.float32)
    if INTERPRETED:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def weight_block(i, p_weight, o_k, i_d, SPEC: tl.constexpr):
    """Block `i` of `step_weights`; `o_k` is the walk's first channel."""
    o_d = i_d * SPEC.BD + channel_order(SPEC.BD, SPEC.VECTOR)
    o_r = i * SPEC.RB + tl.arange(0, SPEC.RB)
    mask = (o_d < SPEC.D)[:, None] & (o_r < SPEC.R)[None, :]
    weight = tl.load(p_weight + (o_k + o_d)[:, None] * SPEC.R + o_r[None, :], mask=mask, other=0.0)  # (BD, RB)
    return tl.trans(rounded(weight, SPEC))


@triton.jit
def step_weights(p_weight, o_k, i_d, SPEC: tl.constexpr):
    """The time steps' weights in blocks of RB ranks `(RB, BD)`, channels in `channel_order`."""
    BLOCKS: tl.constexpr = SPEC.RANK_BLOCKS
    weights = ()
    for i in tl.static_range(BLOCKS):
        weights = weights + (weight_block(i, p_weight, o_k, i_d, SPEC),)
    return weights


@triton.jit
def time_steps(pixel, p_projected, p_steps, weights, bias, m_d, SPEC: tl.constexpr):
    """The time steps of a tile's pixels, in units of log 2, as BL rows: `softplus(W dts + bias)`."""
    BL: tl.constexpr = SPEC.BL
    BD: tl.constexpr = SPEC.BD
    BLOCKS: tl.constexpr = SPEC.RANK_BLOCKS
    if SPEC.R > 0:
        o_r = tl.arange(0, SPEC.RB)
        p_dts = (p_projected + o_r)[None, :] + (pixel * SPEC.P_STRIDE)[:, None]
        z = tl.zeros((BL, BD), tl.float32)
        for i in tl.static_range(BLOCKS):
            m_r = (o_r < SPEC.R - i * SPEC.RB) | (SPEC.R - i * SPEC.RB >= SPEC.RB)
            dts = tl.load(p_dts + i * SPEC.RB, mask=m_r[None, :], other=0.0)  # (BL, RB)
            z = tl.dot(rounded(dts, SPEC), weights[i], z, input_precision=SPEC.PRECISION)
        zs = product_rows(z, BL, BD, SPEC.VECTOR)
    else:
        zs = load_tile(row_pointers(p_steps, pixel * (SPEC.K * SPEC.D), SPEC.VECTOR), m_d[None, :], BL, BD)
    rows = ()
    for i in tl.static_range(BL):
        rows = rows + (time_step(zs[i] * LOG2E + bias, SPEC.SOFTPLUS, SPEC.FAST, SPEC.EXACT),)
    return rows
