"""What all Triton scans share: one copy of the step size, the decay, the recurrence and the walk over a grid.

A program works on tiles of BT positions by BD channels. Everything elementwise and every matrix product acts on whole
tiles; only the recurrence goes row by row. Cutting a tile into rows and joining rows to a tile is register renaming,
because the compiler keeps the rows of a tile in one lane (read from the machine code: no shuffle, no shared memory).
That holds against time as well, where `tl.associative_scan(reverse=True)` would shuffle.
"""

import functools

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

BT = 16
"""Positions of a tile: the smallest height of a tensor-core product."""

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
SOFTPLUS_THRESHOLD = tl.constexpr(28.853900817779268)  # PyTorch's 20, in units of log 2

_LARGE = 1 << 21
"""Longest walk whose division by a line's length is exact in float32."""


def numerics(device: torch.device, dtype: torch.dtype) -> dict:
    """Compile-time choices of arithmetic for inputs of `dtype`.

    FAST: the hardware's log2 through libdevice, CUDA only; HIP and the interpreter take Triton's own.
    EXACT: relative accuracy for tiny time steps and products to float32's precision: for float32 inputs.
    PRECISION: of tensor-core products of float32 operands.
    """
    cuda = device.type == 'cuda' and torch.version.hip is None
    exact = dtype == torch.float32
    return dict(FAST=cuda, EXACT=exact, PRECISION='ieee' if not cuda else 'tf32x3' if exact else 'tf32')


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; the interpreter is one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == 'cuda' else 1


def is_large(length: int) -> bool:
    """Whether a walk must divide in integers."""
    return length > _LARGE


def padded(columns: int) -> int:
    """Columns of a tile that takes part in a matrix product: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(columns))


@triton.jit
def to_rows(tile, BT: tl.constexpr, BD: tl.constexpr):
    """`(BT, BD)` as a tuple of BT rows `(BD,)`."""
    parts = (tile,)
    for level in tl.static_range(4):
        if (1 << level) < BT:
            cut = ()
            for i in tl.static_range(1 << level):
                halves = tl.reshape(parts[i], (2, BT >> (level + 1), BD))
                first, second = tl.split(tl.permute(halves, (1, 2, 0)))
                cut = cut + (first, second)
            parts = cut
    rows = ()
    for i in tl.static_range(BT):
        rows = rows + (tl.reshape(parts[i], (BD,)),)
    return rows


@triton.jit
def from_rows(rows, BT: tl.constexpr, BD: tl.constexpr):
    """The inverse of `to_rows`."""
    parts = ()
    for i in tl.static_range(BT):
        parts = parts + (tl.reshape(rows[i], (1, BD)),)
    for level in tl.static_range(4):
        if (1 << level) < BT:
            joined = ()
            for i in tl.static_range(BT >> (level + 1)):
                pair = tl.permute(tl.join(parts[2 * i], parts[2 * i + 1]), (2, 0, 1))
                joined = joined + (tl.reshape(pair, (2 << level, BD)),)
            parts = joined
    return parts[0]


@triton.jit
def time_step(z, SOFTPLUS: tl.constexpr, FAST: tl.constexpr, EXACT: tl.constexpr):
    """Softplus of z; z and result in units of log 2, so that it costs one exp2 and one log2."""
    u = z
    if SOFTPLUS:
        e = tl.exp2(z)
        u = libdevice.fast_log2f(1.0 + e) if FAST else tl.log2(1.0 + e)
        if EXACT:  # 1 + e has lost the low bits of a small e
            series = e * (LOG2E - e * (LOG2E / 2 - e * (LOG2E / 3 - e * (LOG2E / 4))))
            u = tl.where(e < 0.03125, series, u)
        u = tl.where(z > SOFTPLUS_THRESHOLD, z, u)
    return u


@triton.jit
def time_step_slope(u, SOFTPLUS: tl.constexpr, EXACT: tl.constexpr):
    """Derivative of `time_step` from its value, so that z need not be kept: 1 - 2^-u."""
    slope = tl.full(u.shape, 1.0, tl.float32)
    if SOFTPLUS:
        slope = 1.0 - tl.exp2(-u)
        if EXACT:  # the difference has lost the low bits of a small one
            v = u * LN2
            slope = tl.where(v < 0.0625, v * (1.0 - v * (1.0 / 2 - v * (1.0 / 6 - v * (1.0 / 24)))), slope)
    return slope


@triton.jit
def recur(a, b, h, BT: tl.constexpr, BD: tl.constexpr, KEPT: tl.constexpr):
    """`h_t = a_t h_{t-1} + b_t` down a tile: all h_t and the last; with KEPT all `a_t h_{t-1}` and the last h_t."""
    a_rows = to_rows(a, BT, BD)
    b_rows = to_rows(b, BT, BD)
    rows = ()
    for i in tl.static_range(BT):
        if KEPT:
            kept = a_rows[i] * h
            rows = rows + (kept,)
            h = kept + b_rows[i]
        else:
            h = a_rows[i] * h + b_rows[i]
            rows = rows + (h,)
    return from_rows(rows, BT, BD), h


@triton.jit
def recur_back(a, c, dh, BT: tl.constexpr, BD: tl.constexpr):
    """`dh_t = c_t + a_{t+1} dh_{t+1}` up a tile, from `dh`, which holds a_{t+1} dh_{t+1} of the tile after it."""
    a_rows = to_rows(a, BT, BD)
    c_rows = to_rows(c, BT, BD)
    backwards = ()
    for i in tl.static_range(BT):
        state = c_rows[BT - 1 - i] + dh
        backwards = backwards + (state,)
        dh = a_rows[BT - 1 - i] * state
    rows = ()
    for i in tl.static_range(BT):
        rows = rows + (backwards[BT - 1 - i],)
    return from_rows(rows, BT, BD), dh


@triton.jit
def pixels_of(
    t0, o_t, L, H, W, by_column, reverse, ANY_COLUMN: tl.constexpr, LONG_LINES: tl.constexpr, LARGE: tl.constexpr
):
    """Row-major pixels of the positions `t0 + o_t` of a route."""
    first = tl.where(reverse, L - 1 - t0, t0)
    sign = tl.where(reverse, -1, 1)
    if not ANY_COLUMN:
        pixels = first + sign * o_t
    elif LONG_LINES:  # no tile can touch more than two lines: one comparison instead of a division a position
        line = first // H
        place = first - line * H
        wrap = tl.where(reverse, place + 1, H - place)
        stride = tl.where(by_column, sign * W, sign)
        jump = tl.where(by_column, sign * (1 - H * W), 0)
        first = tl.where(by_column, place * W + line, first)
        pixels = first + stride * o_t + tl.where(o_t >= wrap, jump, 0)
    else:
        t = first + sign * o_t
        line = t // H if LARGE else ((t.to(tl.float32) + 0.5) * (1.0 / H)).to(tl.int32)
        pixels = tl.where(by_column, (t - line * H) * W + line, t)
    return pixels


@triton.jit
def program(chunks, K: tl.constexpr, BLOCKS: tl.constexpr):
    """Channel block, chunk, route and image of this program; the routes of an image are neighbours and share it."""
    i = tl.program_id(0)
    i_d = i % BLOCKS
    i_k = (i // BLOCKS) % K
    i = i // (BLOCKS * K)
    return i_d, i % chunks, i_k, i // chunks
