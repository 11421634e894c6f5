"""What the pooled scan's Triton kernels share: lines of a grid, tiles of its tokens, both causal convolutions.

Lanes are channels. A program walks a run of tokens in tiles of U by its channels and keeps the rows around a tile that
the convolutions reach in registers, so that a token is read once. Rows, columns and their lengths are run-time numbers:
one compilation serves both axes and every grid.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from ..shared_triton.numerics import from_rows, to_rows


class Lines(NamedTuple):
    """A grid as lines of tokens.

    Attributes:
        lines, size: how many lines, and tokens of a line.
        step, line_step: pixels from a token to the next of its line, and to the one beside it in the next line.
    """

    lines: int
    size: int
    step: int
    line_step: int

    @classmethod
    def of(cls, shape: tuple[int, ...], axis: str) -> 'Lines':
        """The lines of `(B, H, W, 2D)` along an axis."""
        height, width = shape[1:3]
        return cls(height, width, 1, width) if axis == 'row' else cls(width, height, width, 1)


@triton.jit
def locate(t0, size, step, line_step, U: tl.constexpr):
    """Of the tokens t0 to t0 + U - 1: the first one's line, how many lines further each is, the pixel of each.

    A line as long as a tile ends at most once in it; the others are counted by a division that is exact for small
    numbers. What a token before the first gets is of no use, but the first one's is right.
    """
    o_t = tl.arange(0, U)
    line = t0 // size
    place = t0 - line * size
    further = ((place + o_t + 0.5) * (1.0 / size)).to(tl.int32)
    further = tl.where(size >= U, (place + o_t >= size).to(tl.int32), further)
    pixels = line * line_step + place * step + o_t * step + further * (line_step - size * step)
    return line, further, pixels.to(tl.int64)


@triton.jit
def read_taps(p_weight, p_bias, o_d, m_d, KS: tl.constexpr):
    """KS taps of a depthwise convolution with `(D, 1, KS)` weights and, last, its bias."""
    taps = ()
    for j in tl.static_range(KS):
        taps = taps + (tl.load(p_weight + o_d * KS + j, mask=m_d, other=0.0).to(tl.float32),)
    return taps + (tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32),)


@triton.jit
def read_tile(p_x, t0, L, size, step, line_step, o_d, m_d, WIDTH: tl.constexpr, U: tl.constexpr):
    """The tokens t0 to t0 + U - 1 of `(L, WIDTH)`, zero where there is none."""
    t = t0 + tl.arange(0, U)
    _, _, pixels = locate(t0, size, step, line_step, U)
    m = ((t >= 0) & (t < L))[:, None] & m_d[None, :]
    return tl.load(p_x + pixels[:, None] * WIDTH + o_d[None, :], mask=m, other=0.0).to(tl.float32)


@triton.jit
def read_window(
    p_x, t0, L, size, step, line_step, o_d, m_d, WIDTH: tl.constexpr, KS: tl.constexpr, U: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """The rows that the convolutions of token t0 and of the one before it have in common."""
    window = ()
    for i in tl.static_range((2 * KS - 3 + U) // U):
        first = t0 - (KS - 1) + i * U
        rows = to_rows(
            read_tile(p_x, first, tl.minimum(L, t0 + KS - 1), size, step, line_step, o_d, m_d, WIDTH, U), U, BD
        )
        for j in tl.static_range(U):
            if i * U + j < 2 * KS - 2:
                window = window + (rows[j],)
    return window


@triton.jit
def extend_window(
    window, p_x, t0, L, size, step, line_step, o_d, m_d, WIDTH: tl.constexpr, KS: tl.constexpr, U: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """The window of token t0 and the U rows behind it; the last 2 KS - 2 rows are the window of token t0 + U."""
    return window + to_rows(read_tile(p_x, t0 + KS - 1, L, size, step, line_step, o_d, m_d, WIDTH, U), U, BD)


@triton.jit
def convolve(window, taps_forth, taps_back, KS: tl.constexpr, U: tl.constexpr, BD: tl.constexpr):
    """Both causal convolutions of the U tokens of a window: one ends at a token, the other begins there.

    Products and sums are fused explicitly: two kernels must find the same maximum of a line, bit for bit.
    """
    rows_forth = ()
    rows_back = ()
    for i in tl.static_range(U):
        forth = taps_forth[KS]
        back = taps_back[KS]
        for j in tl.static_range(KS):
            forth = tl.fma(taps_forth[j], window[i + j], forth)
            back = tl.fma(taps_back[j], window[i + 2 * KS - 2 - j], back)
        rows_forth = rows_forth + (forth,)
        rows_back = rows_back + (back,)
    return from_rows(rows_forth, U, BD), from_rows(rows_back, U, BD)


@triton.jit
def read_line(p_lines, line, o_d, mask, D: tl.constexpr):
    """Both directions' rows of a line of `(lines, 2, D)`, float32."""
    p = p_lines + tl.cast(line, tl.int64) * (2 * D) + o_d
    mask = mask != 0  # a comparison, as Triton 3.9's interpreter takes no mask that a scalar took part in
    forth = tl.load(p, mask=mask, other=0.0)
    return forth, tl.load(p + D, mask=mask, other=0.0)


@triton.jit
def write_line(p_lines, line, o_d, mask, forth, back, D: tl.constexpr):
    """The inverse of `read_line`."""
    p = p_lines + tl.cast(line, tl.int64) * (2 * D) + o_d
    mask = mask != 0
    tl.store(p, forth, mask=mask)
    tl.store(p + D, back, mask=mask)
