"""The scans compiled for the host by numba: one copy of the mathematics for every operator's `cpu` backend.

Everything compiled is in this file because numba's disk cache only notices changes of a function's own file.

A task is one sequence (an image of a batch) and one block of channels. It walks the sequence in tiles of positions that
stay in the first-level cache, lanes are channels, and no two tasks write the same place, so results do not depend on
which thread ran what.

The width of a block is a constant of the file and the functions are plain ones of the module: a closure over other
compiled functions has a new identity in every process, and the disk cache would never find it again.
"""

import functools
import logging

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, from_dtype, njit, types
from numba.core import cgutils, event
from numba.extending import intrinsic

TILE = 16
"""Positions that are worked on together; also the distance of the states that the backward pass keeps."""

BLOCK = 48
"""Channels of a task: three of the widest vectors, and a divisor of the usual 96, 192, ..."""

ROUTE = np.dtype(
    [
        (name, np.int64)
        for name in (
            *('x', 'projected', 'ready', 'weight', 'bias', 'decay', 'skip', 'y', 'add'),
            *('length', 'total', 'routes', 'k', 'rank', 'states', 'base', 'channels', 'softplus'),
            *('height', 'width', 'by_column', 'reverse', 'keep_order'),
            *('dy', 'dx', 'dz', 'dBC', 'ddecay', 'dskip'),
        )
    ]
)
"""One walk over a batch of sequences, as the compiled functions read it: addresses of contiguous float32, sizes, flags.

    x, ready, y, dy, dx, dz (B, length, total)      the channels from `base` to `base + channels` are scanned
    projected (B, length, routes, rank + 2 states)  of which group `k` is used
    weight (blocks, rank, BLOCK)                    with rank 0 the time step before its bias comes from `ready`
    bias, skip (blocks, BLOCK), decay (blocks, states, BLOCK)       decay: A times log2 e
    dBC (blocks, B, length, 2 states), ddecay (B, blocks, states, BLOCK), dskip (B, blocks, BLOCK)
    add: add to y (backward: to dx) instead of writing it
"""

JOB = np.dtype([(name, np.int64) for name in ('next', 'routes', 'chains', 'links', 'batch', 'blocks')])
"""`chains * links` records at the address `routes`; `next` is the first task that no thread has taken.

A task is a chain, a sequence and a block of channels. It runs the chain's links one after the other, so only links of
the same chain may write to the same place.
"""

_logger = logging.getLogger('mmvmamba.kernels')
_f32 = np.float32
_LOG2E = _f32(1.4426950408889634)
_LN2 = _f32(0.6931471805599453)
_ROUND = _f32(12582912.0)  # 1.5 * 2**23: adding it rounds to an integer, held in the lowest bits of the sum

_COMPILE = dict(cache=True, error_model='numpy')
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


@intrinsic
def _floats(typingctx, address):
    """An address as a pointer to float32."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.int64), codegen


@intrinsic
def _records(typingctx, address):
    """An address as a pointer to records of `ROUTE`."""
    record = from_dtype(ROUTE)

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(record)(types.int64), codegen


@intrinsic
def _take(typingctx, job):
    """The next task of a job: its first number, fetched and raised in one step."""

    def codegen(context, builder, signature, arguments):
        number = ir.IntType(64)
        first = builder.bitcast(arguments[0], number.as_pointer())
        return builder.atomic_rmw('add', first, number(1), 'monotonic')

    return types.int64(job), codegen


@intrinsic
def _prefetch(typingctx, address):
    """Ask for the cache line at an address; nothing waits for it, and an address nobody owns does no harm."""

    def codegen(context, builder, signature, arguments):
        number, line = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), (line, number, number, number))
        ask = cgutils.get_or_insert_function(builder.module, kind, 'llvm.prefetch')
        builder.call(
            ask, (builder.inttoptr(arguments[0], line), number(0), number(3), number(1))
        )  # to read, keep, data
        return context.get_dummy_value()

    return types.void(types.int64), codegen


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


@njit(**_EXACT)
def _tile_of_zeros():
    return np.zeros((TILE, BLOCK), _f32)


@njit(**_EXACT)
def _project(dts, weight, bias, z):
    """z = bias + dts @ weight for a tile, four positions at a time so that a weight is loaded once for four."""
    for t in range(0, TILE, 4):
        for d in range(BLOCK):
            z[t, d] = bias[d]
            z[t + 1, d] = bias[d]
            z[t + 2, d] = bias[d]
            z[t + 3, d] = bias[d]
        for r in range(weight.shape[0]):
            a0, a1, a2, a3 = dts[t, r], dts[t + 1, r], dts[t + 2, r], dts[t + 3, r]
            for d in range(BLOCK):
                w = weight[r, d]
                z[t, d] += a0 * w
                z[t + 1, d] += a1 * w
                z[t + 2, d] += a2 * w
                z[t + 3, d] += a3 * w


@njit(**_EXACT)
def _read(tensor, b, pixels, n, c0, size, tile):
    """Copy the rows of a tile; slices instead of indices c0 + d, which would cost a check for negative ones."""
    for i in range(n):
        row = tensor[b, pixels[i], c0 : c0 + size]
        for d in range(size):
            tile[i, d] = row[d]


@njit(**_EXACT)
def _write(tile, tensor, b, pixels, n, c0, size, add):
    """The inverse of `read`; with `add`, add to what the tensor holds."""
    for i in range(n):
        row = tensor[b, pixels[i], c0 : c0 + size]
        if add:
            for d in range(size):
                row[d] += tile[i, d]
        else:
            for d in range(size):
                row[d] = tile[i, d]


@njit(**_EXACT)
def _read_projected(projected, b, k, pixels, n, dts, BC):
    """The low-rank time steps and the B and C of a tile."""
    rank = dts.shape[1]
    for i in range(n):
        row = projected[b, pixels[i], k]
        for r in range(rank):
            dts[i, r] = row[r]
        for j in range(BC.shape[1]):
            BC[i, j] = row[rank + j]


@njit(**_EXACT)
def _step_sizes(ready, dts, weight, bias, softplus, b, pixels, n, c0, size, u):
    """The time steps of a tile."""
    _project(dts, weight, bias, u)
    if dts.shape[1] == 0:
        for i in range(n):
            row = ready[b, pixels[i], c0 : c0 + size]
            for d in range(size):
                u[i, d] += row[d]
    if softplus:
        for i in range(n):
            for d in range(BLOCK):
                u[i, d] = _softplus(u[i, d])


@njit(**_EXACT)
def _walk(pixels, t0, n, length, height, width, by_column, reverse):
    """Where the positions of a tile lie in the grid."""
    for i in range(n):
        pixels[i] = _pixel(t0 + i, length, height, width, by_column, reverse)


@njit(**_EXACT)
def _fetch(address, stride, size, b, length, pixels, n):
    """Ask for the rows of a tile, `size` float32 each: on large maps, down the columns, they would be waited for."""
    for i in range(n):
        row = address + 4 * (b * length + pixels[i]) * stride
        for byte in range(0, 4 * size, 64):
            _prefetch(row + byte)


@njit(**_EXACT)
def _decays(decay, u, n, a):
    """exp(delta A) of a tile and one state."""
    for i in range(n):
        for d in range(BLOCK):
            a[i, d] = _exp2(decay[d] * u[i, d])


@njit(**_EXACT)
def _advance(u, xt, BC, decay, skip, n, h, a, yt):
    """The recurrence over a tile: updates the states h and writes yt."""
    states = h.shape[0]
    for s in range(states):
        _decays(decay[s], u, n, a)
        if s == 0:
            for i in range(n):
                B, C = BC[i, s], BC[i, states + s]
                for d in range(BLOCK):
                    state = a[i, d] * h[s, d] + u[i, d] * B * xt[i, d]
                    h[s, d] = state
                    yt[i, d] = skip[d] * xt[i, d] + C * state
        else:
            for i in range(n):
                B, C = BC[i, s], BC[i, states + s]
                for d in range(BLOCK):
                    state = a[i, d] * h[s, d] + u[i, d] * B * xt[i, d]
                    h[s, d] = state
                    yt[i, d] += C * state


@njit(**_EXACT)
def _forward(job):
    """Write `y`."""
    record = carray(job, 1)[0]
    routes = carray(_records(record.routes), (record.chains, record.links))
    batch, blocks = record.batch, record.blocks
    rank, states = routes[0, 0].rank, routes[0, 0].states
    u, xt, yt, a = _tile_of_zeros(), _tile_of_zeros(), _tile_of_zeros(), _tile_of_zeros()
    dts, BC = np.zeros((TILE, rank), _f32), np.zeros((TILE, 2 * states), _f32)
    h = np.zeros((states, BLOCK), _f32)
    pixels, ahead = np.zeros(TILE, np.int64), np.zeros(TILE, np.int64)
    while True:
        task = _take(job)
        if task >= routes.shape[0] * batch * blocks:
            return
        b, blk = task // blocks % batch, task % blocks
        for link in range(routes.shape[1]):
            route = routes[task // (blocks * batch), link]
            tokens = (batch, route.length, route.total)
            x, y = carray(_floats(route.x), tokens), carray(_floats(route.y), tokens)
            ready = carray(_floats(route.ready), tokens)
            projected = carray(_floats(route.projected), (batch, route.length, route.routes, rank + 2 * states))
            weight = carray(_floats(route.weight), (blocks, rank, BLOCK))[blk]
            bias = carray(_floats(route.bias), (blocks, BLOCK))[blk]
            decay = carray(_floats(route.decay), (blocks, states, BLOCK))[blk]
            skip = carray(_floats(route.skip), (blocks, BLOCK))[blk]
            length, height, width, by_column = route.length, route.height, route.width, route.by_column
            c0 = route.base + blk * BLOCK
            size = min(BLOCK, route.channels - blk * BLOCK)
            h[:] = _ZERO
            for t0 in range(0, length, TILE):
                n = min(TILE, length - t0)
                _walk(pixels, t0, n, length, height, width, by_column, route.reverse)
                coming = min(TILE, max(0, length - t0 - TILE))
                _walk(ahead, t0 + TILE, coming, length, height, width, by_column, route.reverse)
                _fetch(route.x + 4 * c0, route.total, size, b, length, ahead, coming)
                _fetch(route.y + 4 * c0, route.total, size, b, length, ahead, coming)
                _read(x, b, pixels, n, c0, size, xt)
                _read_projected(projected, b, route.k, pixels, n, dts, BC)
                _step_sizes(ready, dts, weight, bias, route.softplus, b, pixels, n, c0, size, u)
                _advance(u, xt, BC, decay, skip, n, h, a, yt)
                if route.keep_order:
                    _walk(pixels, t0, n, length, height, width, by_column, 0)
                _write(yt, y, b, pixels, n, c0, size, route.add)


@njit(**_EXACT)
def _replay(u, xt, BC, s, a, n, h, old):
    """The recurrence of state s over a tile, keeping the state before each position."""
    for i in range(n):
        B = BC[i, s]
        for d in range(BLOCK):
            old[i, d] = h[d]
            h[d] = a[i, d] * h[d] + u[i, d] * B * xt[i, d]


@njit(**_EXACT)
def _reverse_states(g, BC, c, a, n, dh, grad):
    """Gradients of a state from the tile's end to its start: `grad` of it, `dh` what goes on to earlier tiles."""
    for i in range(n - 1, -1, -1):
        C = BC[i, c]
        for d in range(BLOCK):
            grad[i, d] = dh[d] + g[i, d] * C
            dh[d] = a[i, d] * grad[i, d]


@njit(**_SUMS)
def _gather(u, xt, g, BC, s, decay, a, old, grad, n, dA, dstep, drow, dBC):
    """From the gradient of a state to those of all that made it; sums over channels for B and C.

    Several small loops: one with as many arrays is more than the compiler will check for overlap, and not
    vectorised. Afterwards `old` holds what was kept of the state before.
    """
    states = BC.shape[1] // 2
    for i in range(n):
        B = BC[i, s]
        for d in range(BLOCK):
            old[i, d] *= a[i, d]
        dB, dC = _ZERO, _ZERO
        for d in range(BLOCK):
            added = u[i, d] * xt[i, d]
            dC += g[i, d] * (old[i, d] + added * B)
            dB += grad[i, d] * added
        dBC[i, s] = dB
        dBC[i, states + s] = dC
        for d in range(BLOCK):
            dA[d] += grad[i, d] * old[i, d] * u[i, d]
        for d in range(BLOCK):
            dstep[i, d] += grad[i, d] * (B * xt[i, d] + old[i, d] * decay[d] * _LN2)
        for d in range(BLOCK):
            drow[i, d] += grad[i, d] * B * u[i, d]


@njit(**_EXACT)
def _skipped(g, xt, skip, n, dD, drow):
    """Gradients through the skip connection."""
    for i in range(n):
        for d in range(BLOCK):
            dD[d] += g[i, d] * xt[i, d]
        for d in range(BLOCK):
            drow[i, d] = skip[d] * g[i, d]


@njit(**_EXACT)
def _slope(u, n, dstep):
    """Through softplus."""
    for i in range(n):
        for d in range(BLOCK):
            dstep[i, d] *= _softplus_slope(u[i, d])


@njit(**_EXACT)
def _backward(job):
    """Write `dx`, `dz` (of the time step before softplus), `dBC`, `ddecay` (of A), `dskip`; of one chain of one link.

    Until a tile is done, dz holds its time steps, so that the walk back need not compute them again.
    """
    record = carray(job, 1)[0]
    route = carray(_records(record.routes), 1)[0]
    batch, blocks = record.batch, record.blocks
    rank, states, length = route.rank, route.states, route.length
    tokens = (batch, length, route.total)
    x, ready, dy = (
        carray(_floats(route.x), tokens),
        carray(_floats(route.ready), tokens),
        carray(_floats(route.dy), tokens),
    )
    dx, dz = carray(_floats(route.dx), tokens), carray(_floats(route.dz), tokens)
    projected = carray(_floats(route.projected), (batch, length, route.routes, rank + 2 * states))
    weight = carray(_floats(route.weight), (blocks, rank, BLOCK))
    bias = carray(_floats(route.bias), (blocks, BLOCK))
    decay = carray(_floats(route.decay), (blocks, states, BLOCK))
    skip = carray(_floats(route.skip), (blocks, BLOCK))
    dBC = carray(_floats(route.dBC), (blocks, batch, length, 2 * states))
    ddecay = carray(_floats(route.ddecay), (batch, blocks, states, BLOCK))
    dskip = carray(_floats(route.dskip), (batch, blocks, BLOCK))
    height, width, by_column, reverse = route.height, route.width, route.by_column, route.reverse
    k, base, channels, softplus, keep_order = route.k, route.base, route.channels, route.softplus, route.keep_order
    tiles = (length + TILE - 1) // TILE
    starts = np.zeros((tiles, states, BLOCK), _f32)
    u, xt, g, a = _tile_of_zeros(), _tile_of_zeros(), _tile_of_zeros(), _tile_of_zeros()
    old, grad, dstep, drow = _tile_of_zeros(), _tile_of_zeros(), _tile_of_zeros(), _tile_of_zeros()
    dts, BC, dBCt = np.zeros((TILE, rank), _f32), np.zeros((TILE, 2 * states), _f32), np.zeros((TILE, 2 * states), _f32)
    h, dh = np.zeros((states, BLOCK), _f32), np.zeros((states, BLOCK), _f32)
    pixels = np.zeros(TILE, np.int64)
    while True:
        task = _take(job)
        if task >= batch * blocks:
            return
        b, blk = task // blocks, task % blocks
        c0 = base + blk * BLOCK
        size = min(BLOCK, channels - blk * BLOCK)
        h[:], xt[:] = _ZERO, _ZERO  # the lanes that fill a block up must not hold what another task has read
        for tile in range(tiles):
            t0 = tile * TILE
            n = min(TILE, length - t0)
            starts[tile] = h
            _walk(pixels, t0, n, length, height, width, by_column, reverse)
            _read(x, b, pixels, n, c0, size, xt)
            _read_projected(projected, b, k, pixels, n, dts, BC)
            _step_sizes(ready, dts, weight[blk], bias[blk], softplus, b, pixels, n, c0, size, u)
            _write(u, dz, b, pixels, n, c0, size, 0)
            for s in range(states):
                _decays(decay[blk, s], u, n, a)
                _replay(u, xt, BC, s, a, n, h[s], old)
        dA, dD = ddecay[b, blk], dskip[b, blk]
        dh[:], dA[:], dD[:] = _ZERO, _ZERO, _ZERO
        xt[:], u[:], g[:] = _ZERO, _ZERO, _ZERO
        for tile in range(tiles - 1, -1, -1):
            t0 = tile * TILE
            n = min(TILE, length - t0)
            if keep_order:
                _walk(pixels, t0, n, length, height, width, by_column, 0)
                _read(dy, b, pixels, n, c0, size, g)
            _walk(pixels, t0, n, length, height, width, by_column, reverse)
            if not keep_order:
                _read(dy, b, pixels, n, c0, size, g)
            _read(x, b, pixels, n, c0, size, xt)
            _read(dz, b, pixels, n, c0, size, u)
            _read_projected(projected, b, k, pixels, n, dts, BC)
            _skipped(g, xt, skip[blk], n, dD, drow)
            dstep[:] = _ZERO
            for s in range(states):
                _decays(decay[blk, s], u, n, a)
                _replay(u, xt, BC, s, a, n, starts[tile, s], old)
                _reverse_states(g, BC, states + s, a, n, dh[s], grad)
                _gather(u, xt, g, BC, s, decay[blk, s], a, old, grad, n, dA[s], dstep, drow, dBCt)
            if softplus:
                _slope(u, n, dstep)
            _write(dstep, dz, b, pixels, n, c0, size, 0)
            _write(drow, dx, b, pixels, n, c0, size, route.add)
            for i in range(n):
                for j in range(2 * states):
                    dBC[blk, b, pixels[i], j] = dBCt[i, j]


class _Announcement(event.Listener):
    """Says once that a function is being compiled, which can be neither heard nor seen otherwise."""

    def __init__(self, name):
        self._message = f'CPU scan: compiling its {name} pass, some seconds, once on this machine'

    def on_start(self, event):
        if self._message:
            _logger.warning(self._message)
            self._message = None

    def on_end(self, event):
        pass


def _entry(name, function):
    signature = types.void(types.CPointer(from_dtype(JOB)))
    with event.install_listener('numba:compile', _Announcement(name)):
        return cfunc(signature, **_COMPILE)(function)


def _forward_job(job):
    _forward(job)


def _backward_job(job):
    _backward(job)


@functools.cache
def forward():
    """The forward pass, compiled or from the disk's cache, as a C function that takes the address of a `JOB`."""
    return _entry('forward', _forward_job)


@functools.cache
def backward():
    """The backward pass, see `forward`."""
    return _entry('backward', _backward_job)
