"""The scan forward on a GPU, for every operator: one kernel for summary, replay and the one-pass walk, one for carries.

A walk over few images and channels has too few programs for the machine. It is then cut into chunks: `_walk` summarises
every chunk (sum of the time steps, end state from a zero start), `_carry` hands states from chunk to chunk, `_walk`
replays every chunk from its true start. Nothing waits for another program, so results never depend on timing.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .triton_math import (
    BT,
    LN2,
    LOG2E,
    is_large,
    multiprocessors,
    numerics,
    padded,
    pixels_of,
    program,
    recur,
    time_step,
)

PROGRAMS_PER_MULTIPROCESSOR = 8
"""Below half of this many programs (each one warp) a walk is cut: two warps to hide each other on every scheduler."""

SHORTEST_CHUNK = 64
"""Positions; shorter chunks would spend more on carries than they win."""


IN_REGISTERS = tl.constexpr(2)
"""States per channel that a walk keeps in registers."""


class Walks(NamedTuple):
    """K walks over every image and what they scan.

    Attributes:
        x: `(B, L, D)` that all walks share, or `(B, L, K*D)` with a slice for each (`grouped`).
        projected: `(B, L, K, R + 2N)`: low-rank time steps, Bs, Cs.
        ready: `(B, L, K*D)` time steps before their bias, with R = 0; or None.
        weight: `(K, D, R)` float32.
        bias, skip: `(K*D,)` float32.
        A: `(K*D, N)` float32.
        grid: H and W of the L positions.
        columns, reverses, keeps: bit k set if walk k goes by columns, backwards, keeps the output order.
        grouped: see `x`.
        softplus: whether the time step goes through softplus.
    """

    x: torch.Tensor
    projected: torch.Tensor
    ready: torch.Tensor | None
    weight: torch.Tensor
    bias: torch.Tensor
    skip: torch.Tensor
    A: torch.Tensor
    grid: tuple[int, int]
    columns: int = 0
    reverses: int = 0
    keeps: int = 0
    grouped: bool = False
    softplus: bool = True

    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """B, L, K, D, N, R."""
        batch, length = self.x.shape[:2]
        walks, channels, rank = self.weight.shape
        return batch, length, walks, channels, self.A.shape[1], rank


def chunking(programs: int, length: int, device: torch.device) -> tuple[int, int]:
    """Number of chunks and their length, a whole number of tiles: 1 chunk if `programs` walks fill the machine."""
    wanted = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device)
    if 2 * programs >= wanted:
        return 1, BT * math.ceil(length / BT)
    chunk = max(SHORTEST_CHUNK, math.ceil(length * programs / wanted))
    chunk = BT * math.ceil(chunk / BT)
    return math.ceil(length / chunk), chunk


@triton.jit(do_not_specialize=['B', 'L', 'H', 'W', 'T', 'chunks'])
def _walk(
    p_x, p_projected, p_ready, p_weight, p_bias, p_skip, p_A, p_y, p_sums, p_states,
    B, L, H, W, T, chunks,
    K: tl.constexpr, D: tl.constexpr, N: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    COLUMNS: tl.constexpr, REVERSES: tl.constexpr, KEEPS: tl.constexpr, GROUPED: tl.constexpr, SOFTPLUS: tl.constexpr,
    SUMMARY: tl.constexpr, STARTS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, LONG_LINES: tl.constexpr,
    LARGE: tl.constexpr, FAST: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """SUMMARY: write `sums (B, chunks, K, D)`, `states (B, chunks, K, N, D)` at the end. Else write y.

    STARTS: start from `states` instead of zero. Many states do not fit into registers: they live in `states`, with a
    barrier (of one warp) a tile.
    """
    C: tl.constexpr = R + 2 * N
    XC: tl.constexpr = K * D if GROUPED else D
    i_d, i_c, i_k, i_b = program(chunks, K, tl.cdiv(D, BD))
    o_d = i_d * BD + tl.arange(0, BD)
    m_d = (o_d < D) | (D % BD == 0)
    o_t = tl.arange(0, BT)
    o_r = tl.arange(0, RP)
    by_column = ((COLUMNS >> i_k) & 1) != 0
    reverse = ((REVERSES >> i_k) & 1) != 0
    reverse_out = (((REVERSES & ~KEEPS) >> i_k) & 1) != 0

    image = i_b.to(tl.int64) * L
    p_x += image * XC
    p_projected += (image * K + i_k) * C
    if GROUPED:
        p_x += i_k * D
        p_y += image * XC + i_k * D
    else:
        p_y += (i_k.to(tl.int64) * B * L + image) * D
    if R == 0:
        p_ready += image * K * D + i_k * D
    o_chunk = (i_b.to(tl.int64) * chunks + i_c) * K + i_k

    o_kd = i_k * D + o_d
    bias = tl.load(p_bias + o_kd, mask=m_d, other=0.0) * LOG2E
    skip = tl.load(p_skip + o_kd, mask=m_d, other=0.0)
    if R > 0:
        m_w = m_d[None, :] & (o_r < R)[:, None]
        weight = tl.load(p_weight + o_kd[None, :] * R + o_r[:, None], mask=m_w, other=0.0) * LOG2E
    p_state = p_states + o_chunk * N * D + o_d  # one state after another, D apart
    h = ()
    if N <= IN_REGISTERS:
        for n in tl.static_range(N):
            start = tl.load(p_state + n * D, mask=m_d, other=0.0) if STARTS else tl.zeros((BD,), tl.float32)
            h = h + (start,)
    elif not STARTS:
        for n in range(N):
            tl.store(p_state + n * D, tl.zeros((BD,), tl.float32), mask=m_d)
        tl.debug_barrier()
    total = tl.zeros((BD,), tl.float32)

    end = tl.minimum(L, (i_c + 1) * T)
    for t0 in range(i_c * T, end, BT):
        t = t0 + o_t
        m_t = t < end
        m = m_t[:, None] & m_d[None, :]
        pixel = pixels_of(t0, o_t, L, H, W, by_column, reverse, COLUMNS != 0, LONG_LINES, LARGE)
        x = tl.load(p_x + pixel[:, None] * XC + o_d[None, :], mask=m, other=0.0).to(tl.float32)
        if R > 0:
            m_r = m_t[:, None] & (o_r < R)[None, :]
            dts = tl.load(p_projected + pixel[:, None] * (K * C) + o_r[None, :], mask=m_r, other=0.0).to(tl.float32)
            z = tl.dot(dts, weight, input_precision=PRECISION) + bias[None, :]
        else:
            z = tl.load(p_ready + pixel[:, None] * (K * D) + o_d[None, :], mask=m, other=0.0).to(tl.float32)
            z = z * LOG2E + bias[None, :]
        u = time_step(z, SOFTPLUS, FAST, EXACT)
        # a position past the end has x = 0; only a summary's sum can notice its time step
        if SUMMARY:
            total += tl.sum(tl.where(m_t[:, None], u, 0.0), axis=0)
        ux = u * x
        y = skip[None, :] * x
        p_BC = p_projected + pixel * (K * C) + R
        if N <= IN_REGISTERS:
            states = ()
            for n in tl.static_range(N):
                A = tl.load(p_A + o_kd * N + n, mask=m_d, other=0.0)
                Bs = tl.load(p_BC + n, mask=m_t, other=0.0).to(tl.float32) * LN2
                after, last = recur(tl.exp2(A[None, :] * u), ux * Bs[:, None], h[n], BT, BD, False)
                states = states + (last,)
                if not SUMMARY:
                    Cs = tl.load(p_BC + (N + n), mask=m_t, other=0.0).to(tl.float32)
                    y += Cs[:, None] * after
            h = states
        else:
            for n in range(N):
                A = tl.load(p_A + o_kd * N + n, mask=m_d, other=0.0)
                Bs = tl.load(p_BC + n, mask=m_t, other=0.0).to(tl.float32) * LN2
                start = tl.load(p_state + n * D, mask=m_d, other=0.0)
                after, last = recur(tl.exp2(A[None, :] * u), ux * Bs[:, None], start, BT, BD, False)
                tl.store(p_state + n * D, last, mask=m_d)
                if not SUMMARY:
                    Cs = tl.load(p_BC + (N + n), mask=m_t, other=0.0).to(tl.float32)
                    y += Cs[:, None] * after
            tl.debug_barrier()
        if not SUMMARY:
            if KEEPS != 0:
                pixel = pixels_of(t0, o_t, L, H, W, by_column, reverse_out, COLUMNS != 0, LONG_LINES, LARGE)
            tl.store(p_y + pixel[:, None] * XC + o_d[None, :], y.to(p_y.dtype.element_ty), mask=m)

    if SUMMARY:
        tl.store(p_sums + o_chunk * D + o_d, total, mask=m_d)
        if N <= IN_REGISTERS:
            for n in tl.static_range(N):
                tl.store(p_state + n * D, h[n], mask=m_d)


@triton.jit(do_not_specialize=['chunks'])
def _carry(
    p_A, p_sums, p_states, chunks, K: tl.constexpr, D: tl.constexpr, N: tl.constexpr, BACK: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """Turn `states (B, chunks, K, N, D)` from each chunk's own share into what enters it, in place.

    BACK: shares are of adjoints, which enter a chunk at its end and leave it at its start.
    """
    i_d, i_n, i_k, i_b = program(N, K, tl.cdiv(D, BD))
    o_d = i_d * BD + tl.arange(0, BD)
    m_d = o_d < D
    A = tl.load(p_A + (i_k * D + o_d) * N + i_n, mask=m_d, other=0.0)
    h = tl.zeros((BD,), tl.float32)
    for i in range(chunks):
        i_c = chunks - 1 - i if BACK else i
        o_chunk = (i_b.to(tl.int64) * chunks + i_c) * K + i_k
        p_state = p_states + (o_chunk * N + i_n) * D + o_d
        share = tl.load(p_state, mask=m_d, other=0.0)
        total = tl.load(p_sums + o_chunk * D + o_d, mask=m_d, other=0.0)
        tl.store(p_state, h, mask=m_d)
        h = tl.exp2(A * total) * h + share


def carry(walks: Walks, sums, states, back=False) -> None:
    """Run `_carry`: `sums (B, chunks, K, D)` and `states (B, chunks, K, N, D)` float32."""
    batch, _, count, channels, N, _ = walks.sizes()
    chunks = sums.shape[1]
    block = 32
    blocks = triton.cdiv(channels, block)
    _carry[(batch * count * N * blocks,)](
        walks.A, sums, states, chunks, K=count, D=channels, N=N, BACK=back, BD=block, num_warps=1
    )


def constants(walks: Walks) -> dict:
    """Compile-time arguments that the walking kernels share."""
    _, length, count, channels, states, rank = walks.sizes()
    return dict(
        K=count,
        D=channels,
        N=states,
        R=rank,
        RP=padded(rank),
        COLUMNS=walks.columns,
        REVERSES=walks.reverses,
        KEEPS=walks.keeps,
        GROUPED=walks.grouped,
        SOFTPLUS=walks.softplus,
        BT=BT,
        LONG_LINES=walks.grid[0] >= BT,
        LARGE=is_large(length),
        # ready time steps cost no product: nothing is won by less than full precision
        **numerics(walks.x.device, torch.float32 if walks.ready is not None else walks.x.dtype),
    )


def block_of(states: int, rank: int, exact: bool) -> int:
    """Channels of a program, which is one warp: as many as the registers hold tiles of."""
    return 64 if states <= IN_REGISTERS.value and not (exact and rank > 32) else 32


def scan(walks: Walks, dtype: torch.dtype) -> torch.Tensor:
    """Scan every walk: `(K, B, L, D)` of `dtype`, one buffer a walk; grouped walks `(B, L, K*D)`."""
    batch, length, count, channels, states, rank = walks.sizes()
    x = walks.x
    y = x.new_empty((batch, length, count * channels) if walks.grouped else (count, batch, *x.shape[1:]), dtype=dtype)
    if batch == 0:
        return y
    shared = constants(walks)
    block = block_of(states, rank, shared['EXACT'])
    programs = batch * count * triton.cdiv(channels, block)
    chunks, chunk = chunking(programs, length, x.device)
    sums = starts = y  # not read
    if chunks > 1:
        sums = x.new_empty((batch, chunks, count, channels), dtype=torch.float32)
    if chunks > 1 or states > IN_REGISTERS.value:
        starts = x.new_empty((batch, chunks, count, states, channels), dtype=torch.float32)

    def run(summary):
        ready = walks.x if walks.ready is None else walks.ready
        tensors = (x, walks.projected, ready, walks.weight, walks.bias, walks.skip, walks.A, y, sums, starts)
        _walk[(programs * chunks,)](
            *tensors,
            *(batch, length, *walks.grid, chunk, chunks),
            SUMMARY=summary,
            STARTS=chunks > 1 and not summary,
            BD=block,
            num_warps=1,
            num_stages=1,
            **shared,
        )

    with torch.cuda.device_of(x):
        if chunks > 1:
            run(summary=True)
            carry(walks, sums, starts)
        run(summary=False)
    return y
