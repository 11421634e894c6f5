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

from .launch import ALIGNMENT

BT = 16
"""Positions of a tile: the smallest height of a tensor-core product."""

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
SOFTPLUS_THRESHOLD = tl.constexpr(28.853900817779268)  # PyTorch's 20, in units of log 2

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def numerics(device: torch.device, dtype: torch.dtype) -> dict:
    """Compile-time choices of arithmetic for inputs of `dtype`.

    FAST: the hardware's log2 through libdevice, CUDA only; HIP and the interpreter take Triton's own.
    EXACT: relative accuracy for tiny time steps and products to float32's precision: for float32 inputs.
    OPERAND: of matrix products; float16 has too small a range.
    PRECISION: of matrix products of float32 operands.
    """
    cuda = is_cuda(device)
    exact = dtype == torch.float32
    operand = tl.bfloat16 if dtype == torch.bfloat16 else tl.float32
    precision = 'ieee' if not cuda else 'tf32x3' if exact else 'tf32'
    return dict(FAST=cuda, EXACT=exact, OPERAND=operand, PRECISION=precision)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; the interpreter is one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == 'cuda' else 1


def dense(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor in `dtype` if one is given, contiguous, and at an address that allows `row_pointers`' hint."""
    if dtype is not None and tensor.dtype != dtype:
        return tensor.to(dtype, memory_format=torch.contiguous_format)
    if not tensor.is_contiguous():
        return tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def is_large(length: int, line: int) -> bool:
    """Whether a walk must divide by the length of its lines, as `route_of`'s inverse would not be exact."""
    return length * line >= 1 << 30


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
def pair_rows(p_B, offsets, N: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr):
    """Bs and Cs of a state, N apart, as rows: one load of as many values as a warp has lanes, then broadcast."""
    pair = tl.load((p_B + tl.arange(0, 2) * N)[None, :] + offsets[:, None]).to(tl.float32)
    Bs, Cs = tl.split(pair)
    Bs = to_rows(tl.broadcast_to(Bs[:, None], (BT, BD)), BT, BD)
    Cs = to_rows(tl.broadcast_to(Cs[:, None], (BT, BD)), BT, BD)
    return Bs, Cs


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
def turned(rows, BT: tl.constexpr):
    """The rows, the last first."""
    result = ()
    for i in tl.static_range(BT):
        result = result + (rows[BT - 1 - i],)
    return result


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
def times_slope(gradient, u, SOFTPLUS: tl.constexpr, EXACT: tl.constexpr):
    """`gradient` times the derivative of `time_step`, 1 - 2^-u, from its value, so that z need not be kept."""
    if SOFTPLUS:
        rest = tl.exp2(-u)
        if EXACT:  # the difference has lost the low bits of a small one
            v = u * LN2
            series = v * (1.0 - v * (1.0 / 2 - v * (1.0 / 6 - v * (1.0 / 24))))
            gradient = gradient * tl.where(v < 0.0625, series, 1.0 - rest)
        else:
            gradient = gradient - gradient * rest
    return gradient


@triton.jit
def separate_product(x, y, FAST: tl.constexpr):
    """A product that is rounded before anything is added to it.

    Lanes that add up each other's numbers fuse each its own product into the first sum if they may, and end with sums
    that differ in the last bit.
    """
    if FAST:
        return tl.inline_asm_elementwise('mul.rn.f32 $0, $1, $2;', '=f,f,f', [x, y], tl.float32, is_pure=True, pack=1)
    else:
        return x * y


@triton.jit
def silu(x):
    """x times its sigmoid."""
    return x * sigmoid(x)


@triton.jit
def silu_slope(x):
    """Derivative of `silu`."""
    s = sigmoid(x)
    return s + x * s * (1.0 - s)


@triton.jit
def rounded(tile, OPERAND: tl.constexpr):
    """A matrix product's operand. The interpreter cannot multiply bfloat16, so there only the rounding takes place."""
    tile = tile.to(OPERAND)
    if INTERPRETED:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def weight_block(
    i, p_weight, o_k, i_d, D: tl.constexpr, R: tl.constexpr, RB: tl.constexpr, BD: tl.constexpr, VECTOR: tl.constexpr,
    OPERAND: tl.constexpr,
):  # fmt: skip
    """Block `i` of `weights_of`."""
    o_d = i_d * BD + channel_order(BD, VECTOR)
    o_r = i * RB + tl.arange(0, RB)
    mask = (o_d < D)[:, None] & (o_r < R)[None, :]
    weight = tl.load(p_weight + (o_k + o_d)[:, None] * R + o_r[None, :], mask=mask, other=0.0)
    return tl.trans(rounded(weight, OPERAND))


@triton.jit
def weights_of(
    p_weight, o_k, i_d, D: tl.constexpr, R: tl.constexpr, RB: tl.constexpr, BD: tl.constexpr, VECTOR: tl.constexpr,
    OPERAND: tl.constexpr,
):  # fmt: skip
    """The time steps' weights in blocks of RB ranks `(RB, BD)`, channels in `channel_order`."""
    weights = ()
    for i in tl.static_range((R + RB - 1) // RB):
        weights = weights + (weight_block(i, p_weight, o_k, i_d, D, R, RB, BD, VECTOR, OPERAND),)
    return weights


@triton.jit
def step_rows(
    t0, last, p_projected, p_ready, weights, bias, m_d, route,
    KC: tl.constexpr, KD: tl.constexpr, R: tl.constexpr, RB: tl.constexpr, RAGGED: tl.constexpr, SOFTPLUS: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr, VECTOR: tl.constexpr, ANY_COLUMN: tl.constexpr, LONG_LINES: tl.constexpr,
    LARGE: tl.constexpr, FAST: tl.constexpr, EXACT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The time steps of a tile, in units of log 2, as BT rows; past position `t0 + last` that one's again."""
    o_t = tl.arange(0, BT)
    if RAGGED:
        o_t = tl.minimum(o_t, last)
    pixel = pixels_of(t0, o_t, route, ANY_COLUMN, LONG_LINES, LARGE)
    if R > 0:
        o_r = tl.arange(0, RB)
        p_dts = (p_projected + o_r)[None, :] + (pixel * KC)[:, None]
        z = tl.zeros((BT, BD), tl.float32)
        for i in tl.static_range((R + RB - 1) // RB):
            m_r = (o_r < R - i * RB) | (R - i * RB >= RB)
            dts = tl.load(p_dts + i * RB, mask=m_r[None, :], other=0.0)
            z = tl.dot(rounded(dts, OPERAND), weights[i], z, input_precision=PRECISION)
        zs = product_rows(z, BT, BD, VECTOR)
    else:
        zs = load_tile(row_pointers(p_ready, pixel * KD, VECTOR), m_d[None, :], BT, BD)
    rows = ()
    for i in tl.static_range(BT):
        rows = rows + (time_step(zs[i] * LOG2E + bias, SOFTPLUS, FAST, EXACT),)
    return rows


@triton.jit
def route_of(i_k, L, H, W, COLUMNS: tl.constexpr, REVERSES: tl.constexpr):
    """What `pixels_of` needs to know of route `i_k`."""
    by_column = ((COLUMNS >> i_k) & 1) != 0
    reverse = ((REVERSES >> i_k) & 1) != 0
    inverse = (((1 << 31) + H.to(tl.int64) - 1) // H).to(tl.uint32)
    return L, H, W, by_column, reverse, inverse


@triton.jit
def pixels_of(t0, o_t, route, ANY_COLUMN: tl.constexpr, LONG_LINES: tl.constexpr, LARGE: tl.constexpr):
    """Row-major pixels of the positions `t0 + o_t` of a route; 64 bits, so that an address is one multiplication."""
    L, H, W, by_column, reverse, inverse = route
    first = tl.where(reverse, L - 1 - t0, t0)
    sign = tl.where(reverse, -1, 1)
    if not ANY_COLUMN:
        pixels = first + sign * o_t
    elif LONG_LINES:  # no tile can touch more than two lines: one comparison instead of a division a position
        line = first // H if LARGE else tl.umulhi((2 * first + 1).to(tl.uint32), inverse).to(tl.int32)
        place = first - line * H
        wrap = tl.where(reverse, place + 1, H - place)
        stride = tl.where(by_column, sign * W, sign)
        jump = tl.where(by_column, sign * (1 - H * W), 0)
        first = tl.where(by_column, place * W + line, first)
        pixels = tl.where(o_t < wrap, first, first + jump) + stride * o_t
    else:
        t = first + sign * o_t
        line = t // H if LARGE else tl.umulhi((2 * t + 1).to(tl.uint32), inverse).to(tl.int32)
        pixels = tl.where(by_column, (t - line * H) * W + line, t)
    return pixels.to(tl.int64)


@triton.jit
def program(chunks, K: tl.constexpr, BLOCKS: tl.constexpr):
    """Channel block, chunk, route and image of this program; the routes of an image are neighbours and share it."""
    i = tl.program_id(0)
    i_d = i % BLOCKS
    i_k = (i // BLOCKS) % K
    i = i // (BLOCKS * K)
    return i_d, i % chunks, i_k, i // chunks


@triton.jit
def sigmoid(x):
    """The reciprocal of 1 + exp(-x), as the square of a reciprocal root: a division is seven instructions longer."""
    root = tl.rsqrt(1.0 + tl.exp2(x * -LOG2E))
    return root * root


@triton.jit
def keep(rows, START: tl.constexpr, COUNT: tl.constexpr):
    """Part of a tuple of rows."""
    kept = ()
    for i in tl.static_range(COUNT):
        kept = kept + (rows[START + i],)
    return kept


PROGRAMS_OF_RUNS = 16
"""Programs a multiprocessor that work on runs of pixels with halos: longer runs read fewer halos and weights twice."""


def programs_of_runs(device: torch.device) -> int:
    """Programs that fill the machine: what `share` goes by, for keeping plans."""
    return PROGRAMS_OF_RUNS * multiprocessors(device)


def share(count: int, programs: int, device: torch.device) -> int:
    """How many of `count` items (times `programs`) a program takes, so that the machine is filled."""
    return max(1, count * programs // programs_of_runs(device))


def is_cuda(device: torch.device) -> bool:
    """Whether it is a GPU of NVIDIA's."""
    return device.type == 'cuda' and torch.version.hip is None


def launch_options(warps: int, all_registers: bool) -> dict:
    """How a kernel is compiled for programs of so many warps.

    Args:
        warps: of a program.
        all_registers: let it have all that there are, on CUDA: the compiler would rather spill a few bytes to let more
            programs in.
    """
    return dict(num_warps=warps, num_stages=1, **(dict(maxnreg=min(255, 2048 // warps)) if all_registers else {}))
