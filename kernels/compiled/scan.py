"""The scans compiled for the host by numba: one copy of the mathematics for every operator's `cpu` backend.

Everything compiled is in this file because numba's disk cache only notices changes of a function's own file.

A task is one sequence (an image of a batch) and one block of channels. It walks the sequence in tiles of positions that
stay in the first-level cache, lanes are channels, and no two tasks write the same place, so results do not depend on
which thread ran what.
"""

import functools

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

TILE = 16
"""Positions that are worked on together; also the distance of the states that the backward pass keeps."""

_f32 = np.float32
_LOG2E = _f32(1.4426950408889634)
_LN2 = _f32(0.6931471805599453)
_ROUND = _f32(12582912.0)  # 1.5 * 2**23: adding it rounds to an integer, held in the lowest bits of the sum

_COMPILE = dict(nogil=True, cache=True, error_model='numpy')
_EXACT = dict(_COMPILE, fastmath={'contract', 'nnan', 'nsz'})
_SUMS = dict(_COMPILE, fastmath={'contract', 'nnan', 'nsz', 'reassoc'})  # lets sums over channels be vectorised


@intrinsic
def _bits(typingctx, x):
    """The bits of a float32 as an int32."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def _from_bits(typingctx, x):
    """The float32 with these bits."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), codegen


def _constants(*values):
    return tuple(_f32(value) for value in values)


# Polynomials fitted at Chebyshev nodes: 2**f on [-1/2, 1/2] (relative error 3e-9), 2 atanh(s) / s in s*s for s up to
# 1/3 (4e-9), both before rounding to float32; and the Taylor series of (1 - exp(-u)) / u.
_E = _constants(
    0.9999999999595485,
    0.6931472067106187,
    0.24022651213596455,
    0.05550327214210924,
    0.009618025602796367,
    0.0013400432164871745,
    0.00015469732024939734,
)
_E0, _E1, _E2, _E3, _E4, _E5, _E6 = _E
_T0, _T1, _T2, _T3, _T4 = _constants(
    2.0000000078777482, 0.6666631593508106, 0.40024853723472875, 0.2796141883467684, 0.2817465726394113
)
_G1, _G2, _G3, _G4, _G5, _G6 = _constants(-1 / 2, 1 / 6, -1 / 24, 1 / 120, -1 / 720, 1 / 5040)
_ONE, _TWO, _ZERO, _HALF = _constants(1, 2, 0, 0.5)
_LOWEST, _HIGHEST = _constants(-126, 126)


@njit(**_EXACT)
def _exp2(x):
    x = min(max(x, _LOWEST), _HIGHEST)
    shifted = x + _ROUND
    f = x - (shifted - _ROUND)
    p = _E0 + f * (_E1 + f * (_E2 + f * (_E3 + f * (_E4 + f * (_E5 + f * _E6)))))
    return p * _from_bits((_bits(shifted) << np.int32(23)) + np.int32(0x3F800000))


@njit(**_EXACT)
def _softplus(z):
    """log(1 + exp(z)), accurate relative to itself for any z; above 20 it is z to the last bit."""
    t = _exp2(-abs(z) * _LOG2E)
    s = t / (_TWO + t)
    q = s * s
    return max(z, _ZERO) + s * (_T0 + q * (_T1 + q * (_T2 + q * (_T3 + q * _T4))))


@njit(**_EXACT)
def _softplus_slope(u):
    """The derivative of softplus from its value: 1 - exp(-u), accurate relative to itself."""
    small = u * (_ONE + u * (_G1 + u * (_G2 + u * (_G3 + u * (_G4 + u * (_G5 + u * _G6))))))
    return small if u < _HALF else _ONE - _exp2(-u * _LOG2E)


@njit(**_EXACT)
def _pixel(t, length, height, width, by_column, reverse):
    """Row-major index of the t-th position of a route."""
    if reverse:
        t = length - 1 - t
    return (t % height) * width + t // height if by_column else t


@functools.cache
def build(block: int):
    """Functions for channel blocks of `block`, a constant to the compiler: the forward and the backward pass.

    They scan the channels `base` to `base + channels` of `x (B, L, C)` along one route and take, contiguous float32:
    `projected (B, L, K, R + 2N)`, of which group `k` is used, `weight (blocks, R, block)`, `bias (blocks, block)`,
    `decay (blocks, N, block)` (A times log2 e), `skip (blocks, block)`; with R = 0 the time step before its bias comes
    from `ready (B, L, C)`. They do the tasks from `first` to before `last`: task i is sequence `i // blocks` and
    channel block `i % blocks`.
    """

    @njit(**_EXACT)
    def project(dts, weight, bias, z):
        """z = bias + dts @ weight for a tile, four positions at a time so that a weight is loaded once for four."""
        for t in range(0, TILE, 4):
            for d in range(block):
                z[t, d] = bias[d]
                z[t + 1, d] = bias[d]
                z[t + 2, d] = bias[d]
                z[t + 3, d] = bias[d]
            for r in range(weight.shape[0]):
                a0, a1, a2, a3 = dts[t, r], dts[t + 1, r], dts[t + 2, r], dts[t + 3, r]
                for d in range(block):
                    w = weight[r, d]
                    z[t, d] += a0 * w
                    z[t + 1, d] += a1 * w
                    z[t + 2, d] += a2 * w
                    z[t + 3, d] += a3 * w

    @njit(**_EXACT)
    def load(x, projected, ready, k, weight, bias, softplus, b, c0, size, pixels, n, xt, dts, BC, u):
        """Read a tile: x, the projections, and from them the time steps."""
        rank = weight.shape[0]
        for i in range(n):
            p = pixels[i]
            for r in range(rank):
                dts[i, r] = projected[b, p, k, r]
            for j in range(BC.shape[1]):
                BC[i, j] = projected[b, p, k, rank + j]
            for d in range(size):
                xt[i, d] = x[b, p, c0 + d]
        project(dts, weight, bias, u)
        if rank == 0:
            for i in range(n):
                for d in range(size):
                    u[i, d] += ready[b, pixels[i], c0 + d]
        if softplus:
            for i in range(n):
                for d in range(block):
                    u[i, d] = _softplus(u[i, d])

    @njit(**_EXACT)
    def walk(pixels, t0, n, length, height, width, by_column, reverse):
        """Where the positions of a tile lie in the grid."""
        for i in range(n):
            pixels[i] = _pixel(t0 + i, length, height, width, by_column, reverse)

    @njit(**_EXACT)
    def advance(u, xt, BC, decay, skip, n, h, yt):
        """The recurrence over a tile: updates the states h and writes yt."""
        states = h.shape[0]
        for i in range(n):
            for d in range(block):
                yt[i, d] = skip[d] * xt[i, d]
            for s in range(states):
                B, C = BC[i, s], BC[i, states + s]
                for d in range(block):
                    state = _exp2(decay[s, d] * u[i, d]) * h[s, d] + u[i, d] * B * xt[i, d]
                    h[s, d] = state
                    yt[i, d] += C * state

    @njit(**_EXACT)
    def forward(x, projected, ready, k, weight, bias, decay, skip, softplus, base, channels, height, width, by_column,
                reverse, keep_order, y, add, first, last):  # fmt: skip
        """Write `y (B, L, C)`; with `add`, add to what it holds."""
        length = x.shape[1]
        blocks, rank, _ = weight.shape
        states = decay.shape[1]
        u, xt, yt = np.zeros((TILE, block), _f32), np.zeros((TILE, block), _f32), np.zeros((TILE, block), _f32)
        dts, BC = np.zeros((TILE, rank), _f32), np.zeros((TILE, 2 * states), _f32)
        h = np.zeros((states, block), _f32)
        pixels = np.zeros(TILE, np.int64)
        for task in range(first, last):
            b, blk = task // blocks, task % blocks
            c0 = base + blk * block
            size = min(block, channels - blk * block)
            h[:] = _ZERO
            for t0 in range(0, length, TILE):
                n = min(TILE, length - t0)
                walk(pixels, t0, n, length, height, width, by_column, reverse)
                load(x, projected, ready, k, weight[blk], bias[blk], softplus, b, c0, size, pixels, n, xt, dts, BC, u)
                advance(u, xt, BC, decay[blk], skip[blk], n, h, yt)
                for i in range(n):
                    p = t0 + i if keep_order else pixels[i]
                    if add:
                        for d in range(size):
                            y[b, p, c0 + d] += yt[i, d]
                    else:
                        for d in range(size):
                            y[b, p, c0 + d] = yt[i, d]

    @njit(**_SUMS)
    def backward(dy, x, projected, ready, k, weight, bias, decay, skip, softplus, base, channels, height, width,
                 by_column, reverse, keep_order, dx, add, dz, dBC, ddecay, dskip, first, last):  # fmt: skip
        """Write the gradients of one route.

        `dx (B, L, C)` (with `add`: add to it), `dz (B, L, C)` of the time step before softplus, `dBC (blocks, B, L,
        2N)`, `ddecay (B, blocks, N, block)` of A, `dskip (B, blocks, block)`. Until a tile is done, dz holds its time
        steps, so that the walk back need not compute them again.
        """
        length = x.shape[1]
        blocks, rank, _ = weight.shape
        states = decay.shape[1]
        tiles = (length + TILE - 1) // TILE
        starts = np.zeros((tiles, states, block), _f32)
        u, xt, g = np.zeros((TILE, block), _f32), np.zeros((TILE, block), _f32), np.zeros((TILE, block), _f32)
        dts, BC = np.zeros((TILE, rank), _f32), np.zeros((TILE, 2 * states), _f32)
        h, dh, dA = np.zeros((states, block), _f32), np.zeros((states, block), _f32), np.zeros((states, block), _f32)
        old, a = np.zeros((TILE, states, block), _f32), np.zeros((TILE, states, block), _f32)
        dstep, drow, dD = np.zeros(block, _f32), np.zeros(block, _f32), np.zeros(block, _f32)
        pixels = np.zeros(TILE, np.int64)
        for task in range(first, last):
            b, blk = task // blocks, task % blocks
            c0 = base + blk * block
            size = min(block, channels - blk * block)
            h[:] = _ZERO
            for tile in range(tiles):
                t0 = tile * TILE
                n = min(TILE, length - t0)
                starts[tile] = h
                walk(pixels, t0, n, length, height, width, by_column, reverse)
                load(x, projected, ready, k, weight[blk], bias[blk], softplus, b, c0, size, pixels, n, xt, dts, BC, u)
                for i in range(n):
                    for d in range(size):
                        dz[b, pixels[i], c0 + d] = u[i, d]
                    for s in range(states):
                        B = BC[i, s]
                        for d in range(block):
                            h[s, d] = _exp2(decay[blk, s, d] * u[i, d]) * h[s, d] + u[i, d] * B * xt[i, d]
            dh[:], dA[:], dD[:] = _ZERO, _ZERO, _ZERO
            xt[:], u[:], g[:] = _ZERO, _ZERO, _ZERO
            for tile in range(tiles - 1, -1, -1):
                t0 = tile * TILE
                n = min(TILE, length - t0)
                walk(pixels, t0, n, length, height, width, by_column, reverse)
                h[:] = starts[tile]
                for i in range(n):
                    p = pixels[i]
                    q = t0 + i if keep_order else p
                    for j in range(2 * states):
                        BC[i, j] = projected[b, p, k, rank + j]
                    for d in range(size):
                        xt[i, d] = x[b, p, c0 + d]
                        u[i, d] = dz[b, p, c0 + d]
                        g[i, d] = dy[b, q, c0 + d]
                    for s in range(states):
                        B = BC[i, s]
                        for d in range(block):
                            decayed = _exp2(decay[blk, s, d] * u[i, d])
                            a[i, s, d] = decayed
                            old[i, s, d] = h[s, d]
                            h[s, d] = decayed * h[s, d] + u[i, d] * B * xt[i, d]
                for i in range(n - 1, -1, -1):
                    p = pixels[i]
                    for d in range(block):
                        dD[d] += g[i, d] * xt[i, d]
                        dstep[d] = _ZERO
                        drow[d] = skip[blk, d] * g[i, d]
                    for s in range(states):
                        B, C = BC[i, s], BC[i, states + s]
                        dB, dC = _ZERO, _ZERO
                        for d in range(block):
                            kept = a[i, s, d] * old[i, s, d]
                            added = u[i, d] * xt[i, d]
                            grad = dh[s, d] + g[i, d] * C
                            dC += g[i, d] * (kept + added * B)
                            dB += grad * added
                            dA[s, d] += grad * kept * u[i, d]
                            dstep[d] += grad * (B * xt[i, d] + kept * decay[blk, s, d] * _LN2)
                            drow[d] += grad * B * u[i, d]
                            dh[s, d] = a[i, s, d] * grad
                        dBC[blk, b, p, s] = dB
                        dBC[blk, b, p, states + s] = dC
                    if softplus:
                        for d in range(block):
                            dstep[d] *= _softplus_slope(u[i, d])
                    for d in range(size):
                        dz[b, p, c0 + d] = dstep[d]
                    if add:
                        for d in range(size):
                            dx[b, p, c0 + d] += drow[d]
                    else:
                        for d in range(size):
                            dx[b, p, c0 + d] = drow[d]
            ddecay[b, blk] = dA
            dskip[b, blk] = dD

    @njit(parallel=True, **_COMPILE)
    def forward_parallel(x, projected, ready, k, weight, bias, decay, skip, softplus, base, channels, height, width,
                         by_column, reverse, keep_order, y, add, tasks, threads):  # fmt: skip
        for i in prange(threads):
            forward(x, projected, ready, k, weight, bias, decay, skip, softplus, base, channels, height, width,
                    by_column, reverse, keep_order, y, add, tasks * i // threads, tasks * (i + 1) // threads)  # fmt: skip

    @njit(parallel=True, **_COMPILE)
    def backward_parallel(dy, x, projected, ready, k, weight, bias, decay, skip, softplus, base, channels, height, width,
                          by_column, reverse, keep_order, dx, add, dz, dBC, ddecay, dskip, tasks, threads):  # fmt: skip
        for i in prange(threads):
            backward(dy, x, projected, ready, k, weight, bias, decay, skip, softplus, base, channels, height, width,
                     by_column, reverse, keep_order, dx, add, dz, dBC, ddecay, dskip,
                     tasks * i // threads, tasks * (i + 1) // threads)  # fmt: skip

    return (forward, forward_parallel), (backward, backward_parallel)
