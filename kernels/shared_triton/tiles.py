"""Tiles of positions by channels, and their rows, which a recurrence goes through one by one.

Everything elementwise and every matrix product acts on whole tiles `(BL, BD)`. Cutting a tile into rows and joining
rows to a tile is register renaming, because the compiler keeps the rows of a tile in one lane (read from the machine
code: no shuffle, no shared memory). That holds against time as well, where `tl.associative_scan(reverse=True)` would
shuffle.
"""

import triton
import triton.language as tl


@triton.jit
def to_rows(tile, BT: tl.constexpr, BD: tl.constexpr):
    """`(BT, BD)` as a tuple of BT rows `(BD,)`."""
    parts = (tile,)
    for level in tl.static_range(5):
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
    for level in tl.static_range(5):
        if (1 << level) < BT:
            joined = ()
            for i in tl.static_range(BT >> (level + 1)):
                pair = tl.permute(tl.join(parts[2 * i], parts[2 * i + 1]), (2, 0, 1))
                joined = joined + (tl.reshape(pair, (2 << level, BD)),)
            parts = joined
    return parts[0]


@triton.jit
def keep(rows, START: tl.constexpr, COUNT: tl.constexpr):
    """Part of a tuple of rows."""
    kept = ()
    for i in tl.static_range(COUNT):
        kept = kept + (rows[START + i],)
    return kept


@triton.jit
def turned(rows, BT: tl.constexpr):
    """The rows, the last first."""
    result = ()
    for i in tl.static_range(BT):
        result = result + (rows[BT - 1 - i],)
    return result


@triton.jit
def channel_order(BD: tl.constexpr, VECTOR: tl.constexpr):
    """Channels in the order in which a product's columns must be for `product_rows`."""
    o = tl.arange(0, BD)
    return o % (BD // VECTOR) * VECTOR + o // (BD // VECTOR)


@triton.jit
def product_rows(tile, BT: tl.constexpr, BD: tl.constexpr, VECTOR: tl.constexpr):
    """Rows of a product with its columns in `channel_order`: neighbouring channels in one lane, as loads have them."""
    columns = to_rows(tile, BT, BD)
    rows = ()
    for i in tl.static_range(BT):
        row = columns[i]
        if VECTOR > 1:
            row = tl.reshape(tl.permute(tl.reshape(row, (VECTOR, BD // VECTOR)), (1, 0)), (BD,))
        rows = rows + (row,)
    return rows


@triton.jit
def row_pointers(p_row, offsets, VECTOR: tl.constexpr):
    """Pointers `(BT, BD)` to rows at `offsets`; the hint gives a lane the channels that `product_rows` gives it."""
    size: tl.constexpr = p_row.dtype.element_ty.primitive_bitwidth // 8
    return tl.multiple_of(p_row[None, :] + offsets[:, None], [1, VECTOR * size])


@triton.jit
def load_tile(pointers, mask, BT: tl.constexpr, BD: tl.constexpr):
    """A tile of float32 rows."""
    return to_rows(tl.load(pointers, mask=mask, other=0.0).to(tl.float32), BT, BD)


@triton.jit
def store_tile(pointers, rows, mask, BT: tl.constexpr, BD: tl.constexpr):
    """The inverse of `load_tile`."""
    tl.store(pointers, from_rows(rows, BT, BD).to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def pair_rows(p_B, offsets, N: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr):
    """Bs and Cs of a state, N apart, as rows: one load of as many values as a warp has lanes, then broadcast."""
    pair = tl.load((p_B + tl.arange(0, 2) * N)[None, :] + offsets[:, None]).to(tl.float32)  # (BT, 2)
    Bs, Cs = tl.split(pair)
    Bs = to_rows(tl.broadcast_to(Bs[:, None], (BT, BD)), BT, BD)
    Cs = to_rows(tl.broadcast_to(Cs[:, None], (BT, BD)), BT, BD)
    return Bs, Cs


@triton.jit
def zero_row(BD: tl.constexpr):
    """A row of zeros."""
    return tl.zeros((BD,), tl.float32)


@triton.jit
def repeated(row, COUNT: tl.constexpr):
    """A tuple of COUNT times the same row."""
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (row,)
    return rows


@triton.jit
def scaled(rows, factor, BT: tl.constexpr):
    """The rows times a number."""
    result = ()
    for i in tl.static_range(BT):
        result = result + (rows[i] * factor,)
    return result


@triton.jit
def hidden_zero(position):
    """Zero, which the compiler cannot know: an offset that depends on where a loop has got to.

    What is computed from addresses moved by it is computed again in every turn. Otherwise the compiler does it once,
    before the loop, and has no registers to keep it in: it would spill.
    """
    return tl.minimum(position, 0)
