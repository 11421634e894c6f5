"""Which pixels a walk visits, and which part of which walk a program has."""

from typing import NamedTuple

import triton
import triton.language as tl


class Route(NamedTuple):
    """What `pixels_of` needs to know of a walk over a grid of H x W.

    Attributes:
        L: positions.
        by_column, reverse: how it goes.
        inverse: 2^31 / H, rounded up: a multiplication by it divides by H.
    """

    L: tl.tensor
    H: tl.tensor
    W: tl.tensor
    by_column: tl.tensor
    reverse: tl.tensor
    inverse: tl.tensor


class Place(NamedTuple):
    """Where a program works.

    Attributes:
        i_d, i_k: channel block and walk.
        i_chunk: number of the chunk, counted over images, chunks and walks.
        pixel: number of the image's first pixel.
        tile: number of the walk's first tile, counted over images, tiles and walks.
        begin, end: the chunk's positions.
        o_d, m_d: `(BD,)` channels, and which of them exist.
        o_kd: `(BD,)` place of those among the channels of all walks.
        o_x: `(BD,)` offset of the image in x and in what is laid out like it.
        route, route_out: of what is read, of what is written.
    """

    i_d: tl.tensor
    i_k: tl.tensor
    i_chunk: tl.tensor
    pixel: tl.tensor
    tile: tl.tensor
    begin: tl.tensor
    end: tl.tensor
    o_d: tl.tensor
    m_d: tl.tensor
    o_kd: tl.tensor
    o_x: tl.tensor
    route: Route
    route_out: Route


def is_large(length: int, line: int) -> bool:
    """Whether a walk must divide by the length of its lines, as `Route.inverse` would not be exact."""
    return length * line >= 1 << 30


@triton.jit
def route_of(i_k, H, W, REVERSES: tl.constexpr, SPEC: tl.constexpr):
    """The `Route` of walk `i_k`."""
    by_column = ((SPEC.COLUMNS >> i_k) & 1) != 0
    reverse = ((REVERSES >> i_k) & 1) != 0
    inverse = (((1 << 31) + H.to(tl.int64) - 1) // H).to(tl.uint32)
    return Route(L=H * W, H=H, W=W, by_column=by_column, reverse=reverse, inverse=inverse)


@triton.jit
def place_of(H, W, T, SPEC: tl.constexpr):
    """The `Place` of this program; programs count channel blocks, walks, chunks of T positions, images, in this order.

    So the walks of an image are neighbours and share what they read.
    """
    K: tl.constexpr = SPEC.K
    D: tl.constexpr = SPEC.D
    L = H * W
    chunks = tl.maximum(tl.cdiv(L, T), 1)
    i = tl.program_id(0)
    i_d = i % SPEC.BLOCKS
    i_chunk = i // SPEC.BLOCKS
    i_k = i_chunk % K
    i_c = i_chunk // K % chunks
    i_b = (i_chunk // K // chunks).to(tl.int64)
    o_d = i_d * SPEC.BD + tl.arange(0, SPEC.BD)
    pixel = i_b * L
    return Place(
        i_d=i_d,
        i_k=i_k,
        i_chunk=i_chunk.to(tl.int64),
        pixel=pixel,
        tile=i_b * tl.cdiv(L, SPEC.BL) * K + i_k,
        begin=i_c * T,
        end=tl.minimum(L, i_c * T + T),
        o_d=o_d,
        m_d=(o_d < D) | (D % SPEC.BD == 0),
        o_kd=i_k * D + o_d,
        o_x=pixel * SPEC.X_STRIDE + (i_k * D + o_d if SPEC.GROUPED else o_d),
        route=route_of(i_k, H, W, SPEC.REVERSES, SPEC),
        route_out=route_of(i_k, H, W, SPEC.REVERSES & ~SPEC.KEEPS, SPEC),
    )


@triton.jit
def pixels_of(start, o_l, route, SPEC: tl.constexpr):
    """Row-major pixels `(BL,)` of the positions `start + o_l` of a route.

    64 bits, so that an address is one multiplication.
    """
    L, H, W, by_column, reverse, inverse = route
    first = tl.where(reverse, L - 1 - start, start)
    sign = tl.where(reverse, -1, 1)
    if SPEC.COLUMNS == 0:
        pixels = first + sign * o_l
    elif SPEC.LONG_LINES:  # no tile can touch more than two lines: one comparison instead of a division a position
        line = first // H if SPEC.LARGE else tl.umulhi((2 * first + 1).to(tl.uint32), inverse).to(tl.int32)
        place = first - line * H
        wrap = tl.where(reverse, place + 1, H - place)
        stride = tl.where(by_column, sign * W, sign)
        jump = tl.where(by_column, sign * (1 - H * W), 0)
        first = tl.where(by_column, place * W + line, first)
        pixels = tl.where(o_l < wrap, first, first + jump) + stride * o_l
    else:
        t = first + sign * o_l
        line = t // H if SPEC.LARGE else tl.umulhi((2 * t + 1).to(tl.uint32), inverse).to(tl.int32)
        pixels = tl.where(by_column, (t - line * H) * W + line, t)
    return pixels.to(tl.int64)
