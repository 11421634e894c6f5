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

GRID = ['lines', 'size', 'step', 'line_step', 'group', 'group_step', 'T']
"""Arguments of a kernel that no compilation depends on."""


class Lines(NamedTuple):
    """A grid as lines of tokens, in the order of the sequence.

    Planes take a third stride. Outer ones are groups of lines. With inner ones the planes of a place are a line, and
    the places of a row or column are a group, of which every plane is pooled: pooled lines are interleaved.

    Attributes:
        lines, size: how many lines, and tokens of a line.
        step, line_step: pixels from a token to the next of its line, and to the one beside it in the next line.
        group, group_step: where lines come in groups, lines of a group, and pixels from one to the next; else None.
        interleaved: whether what is pooled are tokens beside each other in the lines of a group, not lines.
    """

    lines: int
    size: int
    step: int
    line_step: int
    group: int | None = None
    group_step: int | None = None
    interleaved: bool = False

    @classmethod
    def of(cls, shape: tuple[int, ...], axis: str, pool: str | None, planes: str) -> 'Lines':
        """The lines of `(B, H, W, 2D)` or `(B, H, W, K, 2D)` along an axis."""
        height, width = shape[1:3]
        count = shape[3] if len(shape) == 5 else 1
        of_rows = cls(height, width, count, width * count)
        lines = of_rows if axis == 'row' else cls(width, height, width * count, count)
        if count == 1:
            return lines
        if pool is None and axis == 'row':  # nothing but the order matters, and two strides give it
            inner = planes == 'inner'
            return cls(height, width * count, 1, width * count) if inner else cls(count, height * width, count, 1)
        if planes == 'outer':
            return lines._replace(lines=count * lines.lines, group=lines.lines, group_step=1)
        places = lines.lines * lines.size
        return cls(places, count, 1, lines.step, lines.size, lines.line_step, interleaved=pool is not None)

    @property
    def tokens(self) -> int:
        """How many there are."""
        return self.lines * self.size

    @property
    def pooled(self) -> tuple[int, int]:
        """How many lines are pooled, and tokens of one."""
        return (self.lines // self.group * self.size, self.group) if self.interleaved else (self.lines, self.size)

    def items(self, tile: int) -> int:
        """How many pieces of a group there are, so many interleaved lines each: what a program goes through."""
        return self.lines // self.group * triton.cdiv(self.size, tile)

    def numbers(self, part: int) -> dict[str, int | None]:
        """The arguments `GRID` of a kernel whose programs take so many lines or tokens."""
        return dict(zip(GRID, (*self[:6], part), strict=True))


@triton.jit
def grid_of(lines, size, step, line_step, group, group_step):
    """What device functions know a grid by: four numbers, six where lines come in groups."""
    grid = (lines, size, step, line_step)
    if group is not None:
        grid = grid + (group, group_step)
    return grid


@triton.jit
def tokens_of(grid):
    """How many tokens a grid has."""
    return grid[0] * grid[1]


@triton.jit
def pooled_of(grid, INTERLEAVED: tl.constexpr):
    """How many lines are pooled: `Lines.pooled`."""
    return grid[0] // grid[4] * grid[1] if INTERLEAVED else grid[0]


@triton.jit
def run_of_lines(i_run, T, grid):
    """The first token of a run of T lines, and the one behind its last."""
    return i_run * T * grid[1], tl.minimum(grid[0], (i_run + 1) * T) * grid[1]


@triton.jit
def _carried(place, further, size, U: tl.constexpr):
    """`(place + further) // size` for a place below size and at most U further.

    A line as long as a tile ends at most once in it; the others are counted by a division that is exact for small
    numbers.
    """
    quotient = ((place + further + 0.5) * (1.0 / size)).to(tl.int32)
    return tl.where(size >= U, (place + further >= size).to(tl.int32), quotient)


@triton.jit
def _groups(line, further, grid, U: tl.constexpr):
    """Of the lines `line + further`: the first one's group, its place there, how many groups further each is."""
    group = grid[4]
    first = line // group
    place = line - first * group
    return first, place, _carried(place, further, group, U)


@triton.jit
def locate(t0, grid, U: tl.constexpr):
    """Of the tokens t0 to t0 + U - 1: the first one's line, how many lines further each is, the pixel of each.

    What a token before the first gets is of no use, but the first one's is right.
    """
    size = grid[1]
    step = grid[2]
    line_step = grid[3]
    o_t = tl.arange(0, U)
    line = t0 // size
    place = t0 - line * size
    further = _carried(place, o_t, size, U)
    if len(grid) == 4:
        pixels = line * line_step + place * step + o_t * step + further * (line_step - size * step)
    else:
        first, among, beyond = _groups(line, further, grid, U)
        pixels = first * grid[5] + among * line_step + place * step + o_t * step
        pixels += further * (line_step - size * step) + beyond * (grid[5] - grid[4] * line_step)
    return line, further, pixels.to(tl.int64)


@triton.jit
def interleaved_line(t0, grid, U: tl.constexpr):
    """Which pooled line each of the tokens t0 to t0 + U - 1 is on, where they are interleaved."""
    size = grid[1]
    o_t = tl.arange(0, U)
    line = t0 // size
    place = t0 - line * size
    further = _carried(place, o_t, size, U)
    first, _, beyond = _groups(line, further, grid, U)
    return ((first + beyond - further) * size + place + o_t).to(tl.int64)


@triton.jit
def line_of(t, grid):
    """The line of a token."""
    size = grid[1]
    return t // size


@triton.jit
def lines_until(t0, end, grid, U: tl.constexpr):
    """One more than the last line that the tokens from t0 to t0 + U - 1, below `end`, touch."""
    return line_of(tl.minimum(t0 + U, end) - 1, grid) + 1


@triton.jit
def begins_in(i_line, t0, grid):
    """Whether a line begins at token t0 or behind it."""
    size = grid[1]
    return i_line * size >= t0


@triton.jit
def ends_in(i_line, t0, grid, U: tl.constexpr):
    """Whether a line ends before token t0 + U."""
    size = grid[1]
    return (i_line + 1) * size <= t0 + U


@triton.jit
def next_line(line, t0, end, grid, U: tl.constexpr):
    """Of lines as long as a tile: the first that begins at t0 or behind it, whether it does in this tile and before
    `end`, and whether t0 is its first token. `line`: that of t0.
    """
    size = grid[1]
    place = t0 - line * size
    i_line = line + (place != 0).to(tl.int32)
    return i_line, (place == 0) | (place + U > size), i_line * size < end, place == 0


@triton.jit
def items_of(grid, U: tl.constexpr):
    """How many pieces of groups there are, of U interleaved lines each: `Lines.items`."""
    return grid[0] // grid[4] * ((grid[1] + U - 1) // U)


@triton.jit
def item_of(item, grid, U: tl.constexpr):
    """Of a piece of a group its first token, its first pooled line, and how many there are from it to the group's end.

    Its lines' next tokens are `size` tokens further, `group` times in all.
    """
    size = grid[1]
    pieces = (size + U - 1) // U
    i_group = item // pieces
    place = (item - i_group * pieces) * U
    return i_group * grid[4] * size + place, i_group * size + place, size - place


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
def read_rows(p_x, rows, mask, o_d, m_d, WIDTH: tl.constexpr):
    """Rows `(U,)` of what is WIDTH wide, zero where the mask `(U,)` says so: `(U, BD)`."""
    m = mask[:, None] & m_d[None, :]
    return tl.load(p_x + rows[:, None] * WIDTH + o_d[None, :], mask=m, other=0.0).to(tl.float32)  # (U, BD)


@triton.jit
def read_tile(p_x, t0, end, grid, o_d, m_d, WIDTH: tl.constexpr, U: tl.constexpr):
    """The tokens t0 to t0 + U - 1 of `(L, WIDTH)`, pixel by pixel, zero where there is none: `(U, BD)`."""
    t = t0 + tl.arange(0, U)
    _, _, pixels = locate(t0, grid, U)
    return read_rows(p_x, pixels, (t >= 0) & (t < end), o_d, m_d, WIDTH)


@triton.jit
def read_sequence(p_x, t0, end, o_d, m_d, WIDTH: tl.constexpr, U: tl.constexpr):
    """As `read_tile`, of what lies in the order of the sequence."""
    t = t0 + tl.arange(0, U)
    return read_rows(p_x, t.to(tl.int64), (t >= 0) & (t < end), o_d, m_d, WIDTH)


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
def write_lines(p_lines, line, count, o_d, m_d, forth, back, D: tl.constexpr, U: tl.constexpr):
    """`write_line` of the first `count` of U neighbouring lines, `(U, BD)` a direction."""
    o_u = tl.arange(0, U)
    p = p_lines + (line + o_u).to(tl.int64)[:, None] * (2 * D) + o_d[None, :]
    mask = (o_u < count)[:, None] & m_d[None, :]
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
