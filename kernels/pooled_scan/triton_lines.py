"""What the pooled scan's Triton kernels share: lines of a grid, tiles of its tokens, both causal convolutions.

Lanes are channels. A program walks a run of tokens in tiles of U by its channels and keeps the rows around a tile that
the convolutions reach in registers, so that a token is read once. Rows, columns and their lengths are run-time numbers:
one compilation serves both axes and every grid.

Which token lies on which line, and where, is known here alone: kernels pass on `grid`, the numbers of `Lines`.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from ..shared_triton.numerics import from_rows, silu, to_rows

GRID = ['lines', 'size', 'step', 'line_step', 'T']
"""Arguments of a kernel that no compilation depends on."""


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

    @property
    def tokens(self) -> int:
        """How many there are."""
        return self.lines * self.size

    def numbers(self, part: int) -> dict[str, int]:
        """The arguments `GRID` of a kernel whose programs take so many lines or tokens."""
        return dict(self._asdict(), T=part)


@triton.jit
def tokens_of(grid):
    """How many tokens a grid has."""
    lines, size, _, _ = grid
    return lines * size


@triton.jit
def run_of_lines(i_run, T, grid):
    """The first token of a run of T lines, and the one behind its last."""
    lines, size, _, _ = grid
    return i_run * T * size, tl.minimum(lines, (i_run + 1) * T) * size


@triton.jit
def locate(t0, grid, U: tl.constexpr):
    """Of the tokens t0 to t0 + U - 1: the first one's line, how many lines further each is, the pixel of each.

    A line as long as a tile ends at most once in it; the others are counted by a division that is exact for small
    numbers. What a token before the first gets is of no use, but the first one's is right.
    """
    _, size, step, line_step = grid
    o_t = tl.arange(0, U)
    line = t0 // size
    place = t0 - line * size
    further = ((place + o_t + 0.5) * (1.0 / size)).to(tl.int32)
    further = tl.where(size >= U, (place + o_t >= size).to(tl.int32), further)
    pixels = line * line_step + place * step + o_t * step + further * (line_step - size * step)
    return line, further, pixels.to(tl.int64)


@triton.jit
def line_of(t, grid):
    """The line of a token."""
    _, size, _, _ = grid
    return t // size


@triton.jit
def lines_until(t0, end, grid, U: tl.constexpr):
    """One more than the last line that the tokens from t0 to t0 + U - 1, below `end`, touch."""
    return line_of(tl.minimum(t0 + U, end) - 1, grid) + 1


@triton.jit
def begins_in(i_line, t0, grid):
    """Whether a line begins at token t0 or behind it."""
    _, size, _, _ = grid
    return i_line * size >= t0


@triton.jit
def ends_in(i_line, t0, grid, U: tl.constexpr):
    """Whether a line ends before token t0 + U."""
    _, size, _, _ = grid
    return (i_line + 1) * size <= t0 + U


@triton.jit
def next_line(line, t0, end, grid, U: tl.constexpr):
    """Of lines as long as a tile: the first that begins at t0 or behind it, whether it does in this tile and before
    `end`, and whether t0 is its first token. `line`: that of t0.
    """
    _, size, _, _ = grid
    place = t0 - line * size
    i_line = line + (place != 0).to(tl.int32)
    return i_line, (place == 0) | (place + U > size), i_line * size < end, place == 0


@triton.jit
def read_ways(p_ways, o_d, m_d, D: tl.constexpr, KS: tl.constexpr):
    """Both directions' KS taps, bias and skip `(BD,)` from `ways (2, KS + 2, D)`."""
    forth = ()
    back = ()
    for j in tl.static_range(KS + 2):
        forth = forth + (tl.load(p_ways + j * D + o_d, mask=m_d, other=0.0),)  # (BD,)
        back = back + (tl.load(p_ways + (KS + 2 + j) * D + o_d, mask=m_d, other=0.0),)  # (BD,)
    return forth, back


@triton.jit
def read_tile(p_x, t0, end, grid, o_d, m_d, WIDTH: tl.constexpr, U: tl.constexpr):
    """The tokens t0 to t0 + U - 1 of `(L, WIDTH)`, zero where there is none: `(U, BD)`."""
    t = t0 + tl.arange(0, U)
    _, _, pixels = locate(t0, grid, U)
    m = ((t >= 0) & (t < end))[:, None] & m_d[None, :]
    return tl.load(p_x + pixels[:, None] * WIDTH + o_d[None, :], mask=m, other=0.0).to(tl.float32)  # (U, BD)


@triton.jit
def read_window(p_x, t0, grid, o_d, m_d, WIDTH: tl.constexpr, KS: tl.constexpr, U: tl.constexpr, BD: tl.constexpr):
    """The rows that the convolutions of token t0 and of the one before it have in common."""
    end = tl.minimum(tokens_of(grid), t0 + KS - 1)
    window = ()
    for i in tl.static_range((2 * KS - 3 + U) // U):
        rows = to_rows(read_tile(p_x, t0 - (KS - 1) + i * U, end, grid, o_d, m_d, WIDTH, U), U, BD)
        for j in tl.static_range(U):
            if i * U + j < 2 * KS - 2:
                window = window + (rows[j],)
    return window


@triton.jit
def extend_window(
    window, p_x, t0, grid, o_d, m_d, WIDTH: tl.constexpr, KS: tl.constexpr, U: tl.constexpr, BD: tl.constexpr
):
    """The window of token t0 and the U rows behind it; the last 2 KS - 2 rows are the window of token t0 + U."""
    return window + to_rows(read_tile(p_x, t0 + KS - 1, tokens_of(grid), grid, o_d, m_d, WIDTH, U), U, BD)


@triton.jit
def convolve(window, ways, KS: tl.constexpr, U: tl.constexpr, BD: tl.constexpr):
    """Both causal convolutions, with bias, of the U tokens of a window: one ends at a token, the other begins there.

        forth[t] = bias + sum_j taps[j] x[t - (KS - 1) + j]        back[t] = bias + sum_j taps[j] x[t + (KS - 1) - j]

    Products and sums are fused explicitly: two kernels must find the same maximum of a line, bit for bit.
    """
    way_forth, way_back = ways
    rows_forth = ()
    rows_back = ()
    for i in tl.static_range(U):
        forth = way_forth[KS]
        back = way_back[KS]
        for j in tl.static_range(KS):
            forth = tl.fma(way_forth[j], window[i + j], forth)
            back = tl.fma(way_back[j], window[i + 2 * KS - 2 - j], back)
        rows_forth = rows_forth + (forth,)
        rows_back = rows_back + (back,)
    return from_rows(rows_forth, U, BD), from_rows(rows_back, U, BD)


@triton.jit
def activate(
    window, p_xz, t0, grid, ways, o_d, m_d, D: tl.constexpr, KS: tl.constexpr, U: tl.constexpr, BD: tl.constexpr
):
    """The window extended, and `silu(conv(x) + bias)` of its U tokens in both directions, `(U, BD)` each."""
    window = extend_window(window, p_xz, t0, grid, o_d, m_d, 2 * D, KS, U, BD)
    forth, back = convolve(window, ways, KS, U, BD)
    return window, silu(forth), silu(back)


@triton.jit
def read_line(p_lines, line, o_d, mask, D: tl.constexpr):
    """Both directions' rows `(BD,)` of a line of `(lines, 2, D)`, float32."""
    p = p_lines + tl.cast(line, tl.int64) * (2 * D) + o_d
    mask = mask != 0  # a comparison, as Triton 3.9's interpreter takes no mask that a scalar took part in
    forth = tl.load(p, mask=mask, other=0.0)  # (BD,)
    return forth, tl.load(p + D, mask=mask, other=0.0)  # (BD,)


@triton.jit
def write_line(p_lines, line, o_d, mask, forth, back, D: tl.constexpr):
    """The inverse of `read_line`."""
    p = p_lines + tl.cast(line, tl.int64) * (2 * D) + o_d
    mask = mask != 0
    tl.store(p, forth, mask=mask)
    tl.store(p + D, back, mask=mask)


@triton.jit
def gather(value, tile, mask, MAX: tl.constexpr):
    """The sum, or with MAX the maximum, of `value (BD,)` and the rows of a tile in a mask."""
    if MAX:
        value = tl.maximum(value, tl.max(tl.where(mask, tile, -float('inf')), axis=0))
    else:
        value += tl.sum(tl.where(mask, tile, 0.0), axis=0)
    return value
