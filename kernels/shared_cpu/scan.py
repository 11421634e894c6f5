"""The scans compiled for the host by numba, forward and backward: one copy for every operator's `cpu` backend.

A task is one sequence (an image of a batch) and one block of channels. It walks the sequence in tiles of positions that
stay in the first-level cache, lanes are channels, and no two tasks write the same place, so results do not depend on
which thread ran what.
"""

import functools

import numpy as np
from numba import carray, from_dtype, njit, types
from numba.extending import intrinsic

from .vectors import (
    BYTES,
    COMPILE,
    LANES,
    LN2,
    ZERO,
    address,
    entry,
    exp2,
    fill,
    floats,
    load,
    multiply_add,
    number,
    prefetch,
    softplus,
    softplus_slope,
    store,
    sum_of_lanes,
    take,
)

BLOCK = 48
"""Channels of a task: a multiple of `LANES`, and a divisor of the usual 96, 192, ..."""

TILE = 16
"""Positions that are worked on together; also the distance of the states that the backward pass keeps."""

_ROW = 4 * BLOCK  # bytes
_COLUMN = TILE * BYTES  # of a vector at every position of a tile

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


@intrinsic
def _records(typingctx, address):
    """An address as a pointer to records of `ROUTE`."""
    record = from_dtype(ROUTE)

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(record)(types.int64), codegen


_PIXELS, _ROWS, _WRITTEN, _GROUPS = range(4)
"""What `_walk` notes of a tile's positions: the pixel's number in the batch, where its channels lie in a tensor of all
channels, where they lie in one that is written in the order of `keep_order` (both in bytes), and the address of its
projections. Positions that the last tile lacks repeat its last one; nothing is written there."""


@njit(**COMPILE)
def _pixel(route, t):
    """Row-major index of the t-th position."""
    return (t % route.height) * route.width + t // route.height if route.by_column else t


@njit(**COMPILE)
def _walk(route, b, c0, t0, n, places):
    """Where the n positions of a tile lie."""
    length, height = route.length, route.height
    t = length - 1 - t0 if route.reverse else t0
    pixel, place = _pixel(route, t), t % height  # one division a tile, as it costs more than the rest of the walk
    target = _pixel(route, t0)
    stride = 4 * (route.rank + 2 * route.states)
    for i in range(TILE):
        places[_PIXELS, i] = b * length + pixel
        places[_ROWS, i] = 4 * ((b * length + pixel) * route.total + c0)
        places[_WRITTEN, i] = 4 * ((b * length + target) * route.total + c0) if route.keep_order else places[_ROWS, i]
        places[_GROUPS, i] = route.projected + ((b * length + pixel) * route.routes + route.k) * stride
        if i + 1 >= n:
            continue
        target = _pixel(route, t0 + i + 1) if route.keep_order else 0
        if not route.by_column:
            pixel += -1 if route.reverse else 1
        elif route.reverse:
            pixel, place = pixel - route.width, place - 1
            if place < 0:
                pixel, place = pixel + length - 1, height - 1
        else:
            pixel, place = pixel + route.width, place + 1
            if place == height:
                pixel, place = pixel - length + 1, 0


@njit(**COMPILE)
def _fetch(route, size, places):
    """Ask for what a tile reads: on large maps, down the columns, it would be waited for."""
    for i in range(TILE):
        prefetch(places[_GROUPS, i])
        for byte in range(0, 4 * size, 64):
            prefetch(route.x + places[_ROWS, i] + byte)
            prefetch(route.y + places[_WRITTEN, i] + byte)


@njit(**COMPILE)
def _stage(tensor, places, n, size, buffer):
    """Copy the rows of an incomplete block to a complete one; the lanes that fill it up stay as they are."""
    rows = carray(floats(buffer), (TILE, BLOCK))
    for i in range(n):
        row = carray(floats(tensor + places[i]), size)
        for d in range(size):
            rows[i, d] = row[d]


@njit(**COMPILE)
def _unstage(buffer, tensor, places, n, size, add):
    """The inverse of `_stage`; with `add`, add to what the tensor holds."""
    rows = carray(floats(buffer), (TILE, BLOCK))
    for i in range(n):
        row = carray(floats(tensor + places[i]), size)
        for d in range(size):
            row[d] = rows[i, d] + row[d] if add else rows[i, d]


@njit(**COMPILE)
def _project(groups, rank, weight, bias, u):
    """A vector of time steps before softplus: u = bias + dts @ weight for the positions of a tile.

    Eight positions at a time, so that a weight is loaded once for eight.
    """
    for t in range(0, TILE, 8):
        p0, p1, p2, p3 = groups[t], groups[t + 1], groups[t + 2], groups[t + 3]
        p4, p5, p6, p7 = groups[t + 4], groups[t + 5], groups[t + 6], groups[t + 7]
        z0 = z1 = z2 = z3 = z4 = z5 = z6 = z7 = load(bias)
        for r in range(rank):
            w = load(weight + r * _ROW)
            z0 = z0 + w * number(p0 + 4 * r)
            z1 = z1 + w * number(p1 + 4 * r)
            z2 = z2 + w * number(p2 + 4 * r)
            z3 = z3 + w * number(p3 + 4 * r)
            z4 = z4 + w * number(p4 + 4 * r)
            z5 = z5 + w * number(p5 + 4 * r)
            z6 = z6 + w * number(p6 + 4 * r)
            z7 = z7 + w * number(p7 + 4 * r)
        first = u + t * BYTES
        store(z0, first)
        store(z1, first + BYTES)
        store(z2, first + 2 * BYTES)
        store(z3, first + 3 * BYTES)
        store(z4, first + 4 * BYTES)
        store(z5, first + 5 * BYTES)
        store(z6, first + 6 * BYTES)
        store(z7, first + 7 * BYTES)


@njit(**COMPILE)
def _time_steps(route, blk, column, n, groups, ready, rows, u):
    """A vector of time steps at the n positions of a tile."""
    bias = route.bias + blk * _ROW + column
    _project(groups, route.rank, route.weight + blk * route.rank * _ROW + column, bias, u)
    for i in range(n):
        step = load(u + i * BYTES)
        if route.rank == 0:
            step = step + load(ready + rows[i] + column)
        store(softplus(step) if route.softplus else step, u + i * BYTES)


@njit(**COMPILE)
def _advance(route, blk, column, n, places, x, rows, u, h, sums, y, written, add):
    """The recurrence of a vector of channels over the n positions of a tile; writes y."""
    rank, states = route.rank, route.states
    skip = load(route.skip + blk * _ROW + column)
    for s in range(states):
        decay = load(route.decay + (blk * states + s) * _ROW + column)
        state = load(h + s * _ROW + column)
        for i in range(n):
            step, token = load(u + i * BYTES), load(x + rows[i] + column)
            group = places[_GROUPS, i] + 4 * (rank + s)
            state = multiply_add(exp2(decay * step), state, step * token * number(group))
            out = state * number(group + 4 * states) + (skip * token if s == 0 else load(sums + i * BYTES))
            if s < states - 1:
                store(out, sums + i * BYTES)
            else:
                target = y + written[i] + column
                store(out + load(target) if add else out, target)
        store(state, h + s * _ROW + column)


def _forward(job):
    """Write `y`."""
    record = carray(job, 1)[0]
    routes = carray(_records(record.routes), (record.chains, record.links))
    batch, blocks = record.batch, record.blocks
    rank, states = routes[0, 0].rank, routes[0, 0].states
    state_memory = np.zeros((states, BLOCK), np.float32)
    column_memory = np.zeros((2, TILE, LANES), np.float32)
    staged_memory = np.zeros((3, TILE, BLOCK), np.float32)
    own = np.arange(TILE) * _ROW
    places, ahead = np.zeros((4, TILE), np.int64), np.zeros((4, TILE), np.int64)
    while True:
        task = take(job)
        if task >= routes.shape[0] * batch * blocks:
            break
        h, u, staged = address(state_memory), address(column_memory), address(staged_memory)
        b, blk = task // blocks % batch, task % blocks
        for link in range(routes.shape[1]):
            route = routes[task // (blocks * batch), link]
            length, add = route.length, route.add
            c0, size = route.base + blk * BLOCK, min(BLOCK, route.channels - blk * BLOCK)
            state_memory[:] = ZERO
            _walk(route, b, c0, 0, min(TILE, length), places)
            for t0 in range(0, length, TILE):
                n = min(TILE, length - t0)
                if t0 + TILE < length:
                    _walk(route, b, c0, t0 + TILE, min(TILE, length - t0 - TILE), ahead)
                    _fetch(route, size, ahead)
                x, ready, y, rows, written = route.x, route.ready, route.y, places[_ROWS], places[_WRITTEN]
                if size < BLOCK:
                    x, ready, y, rows, written = staged, staged + TILE * _ROW, staged + 2 * TILE * _ROW, own, own
                    _stage(route.x, places[_ROWS], n, size, x)
                    if rank == 0:
                        _stage(route.ready, places[_ROWS], n, size, ready)
                    add = 0
                for column in range(0, _ROW, BYTES):
                    _time_steps(route, blk, column, n, places[_GROUPS], ready, rows, u)
                    _advance(route, blk, column, n, places, x, rows, u, h, u + _COLUMN, y, written, add)
                if size < BLOCK:
                    _unstage(y, route.y, places[_WRITTEN], n, size, route.add)
                places, ahead = ahead, places


@njit(**COMPILE)
def _remember(route, b, blk, places, own, u, h, starts, staged):
    """The states at the start of every tile; dz gets the time steps."""
    rank, states, length = route.rank, route.states, route.length
    c0, size = route.base + blk * BLOCK, min(BLOCK, route.channels - blk * BLOCK)
    for t0 in range(0, length, TILE):
        n = min(TILE, length - t0)
        _walk(route, b, c0, t0, n, places)
        x, ready, dz, rows = route.x, route.ready, route.dz, places[_ROWS]
        if size < BLOCK:
            x, ready, dz, rows = staged, staged + TILE * _ROW, staged + 2 * TILE * _ROW, own
            _stage(route.x, places[_ROWS], n, size, x)
            if rank == 0:
                _stage(route.ready, places[_ROWS], n, size, ready)
        for column in range(0, _ROW, BYTES):
            _time_steps(route, blk, column, n, places[_GROUPS], ready, rows, u)
            for i in range(n):
                store(load(u + i * BYTES), dz + rows[i] + column)
            for s in range(states):
                decay = load(route.decay + (blk * states + s) * _ROW + column)
                state = load(h + s * _ROW + column)
                store(state, starts + (t0 // TILE * states + s) * _ROW + column)
                for i in range(n):
                    step, token = load(u + i * BYTES), load(x + rows[i] + column)
                    B = number(places[_GROUPS, i] + 4 * (rank + s))
                    state = multiply_add(exp2(decay * step), state, step * token * B)
                store(state, h + s * _ROW + column)
        if size < BLOCK:
            _unstage(dz, route.dz, places[_ROWS], n, size, 0)


@njit(**COMPILE)
def _replay(decay, state, s, n, places, rank, steps, x, rows, column, decays, olds):
    """A tile's decays, and its decayed states before what enters at each position."""
    for i in range(n):
        step, token = load(steps + rows[i] + column), load(x + rows[i] + column)
        a = exp2(decay * step)
        store(a, decays + i * BYTES)
        store(a * state, olds + i * BYTES)
        state = multiply_add(a, state, step * token * number(places[_GROUPS, i] + 4 * (rank + s)))


@njit(**COMPILE)
def _differentiate(route, blk, column, n, places, x, steps, dy, rows, written, dh, dA, start, scratch, dBC):
    """The gradients of a vector of channels at a tile's positions, from the last to the first.

    `scratch` receives those of time steps and tokens, `dBC` is added to, `dh` and `dA` go on to the next tile.
    """
    rank, states = route.rank, route.states
    decays, olds, dsteps, drows = scratch, scratch + _COLUMN, scratch + 2 * _COLUMN, scratch + 3 * _COLUMN
    for s in range(states):
        decay = load(route.decay + (blk * states + s) * _ROW + column)
        _replay(decay, load(start + s * _ROW), s, n, places, rank, steps, x, rows, column, decays, olds)
        dstate, grad_A = load(dh + s * _ROW), load(dA + s * _ROW)
        dB, dC = dBC + s * _COLUMN, dBC + (states + s) * _COLUMN
        for i in range(n - 1, -1, -1):
            at = i * BYTES
            step, token = load(steps + rows[i] + column), load(x + rows[i] + column)
            g, decayed = load(dy + written[i] + column), load(olds + at)
            group = places[_GROUPS, i] + 4 * (rank + s)
            B, C = number(group), number(group + 4 * states)
            grad = dstate + g * C
            dstate = load(decays + at) * grad
            entered, of_decay = step * token, grad * decayed
            grad_A = grad_A + of_decay * step
            store(load(dC + at) + g * (decayed + entered * B), dC + at)
            store(load(dB + at) + grad * entered, dB + at)
            store(load(dsteps + at) + (grad * token * B + of_decay * (decay * LN2)), dsteps + at)
            store(load(drows + at) + grad * step * B, drows + at)
        store(dstate, dh + s * _ROW)
        store(grad_A, dA + s * _ROW)


@njit(**COMPILE)
def _return(route, batch, b, blocks, blk, places, own, dh, starts, scratch, group_memory, staged):
    """Walk back over all tiles: write every gradient."""
    states, length = route.states, route.length
    c0, size = route.base + blk * BLOCK, min(BLOCK, route.channels - blk * BLOCK)
    dA, dD = route.ddecay + (b * blocks + blk) * states * _ROW, route.dskip + (b * blocks + blk) * _ROW
    dsteps, drows, zero = scratch + 2 * _COLUMN, scratch + 3 * _COLUMN, fill(ZERO)
    sums = carray(floats(route.dBC), (blocks, batch * length, 2 * states))
    for column in range(0, _ROW, BYTES):
        store(zero, dD + column)
        for s in range(states):
            store(zero, dA + s * _ROW + column)
            store(zero, dh + s * _ROW + column)
    for tile in range((length - 1) // TILE, -1, -1):
        n = min(TILE, length - tile * TILE)
        _walk(route, b, c0, tile * TILE, n, places)
        x, dz, dy, dx, rows, written = route.x, route.dz, route.dy, route.dx, places[_ROWS], places[_WRITTEN]
        add = route.add
        if size < BLOCK:
            x, dz, dy, dx = staged, staged + TILE * _ROW, staged + 2 * TILE * _ROW, staged + 3 * TILE * _ROW
            _stage(route.x, places[_ROWS], n, size, x)
            _stage(route.dz, places[_ROWS], n, size, dz)
            _stage(route.dy, places[_WRITTEN], n, size, dy)
            rows, written, add = own, own, 0
        group_memory[:] = ZERO
        dBC = address(group_memory)
        for column in range(0, _ROW, BYTES):
            skip, skipped = load(route.skip + blk * _ROW + column), load(dD + column)
            for i in range(n):
                g = load(dy + written[i] + column)
                skipped = skipped + g * load(x + rows[i] + column)
                store(skip * g, drows + i * BYTES)
                store(zero, dsteps + i * BYTES)
            store(skipped, dD + column)
            start = starts + tile * states * _ROW + column
            args = (dh + column, dA + column, start, scratch, dBC)
            _differentiate(route, blk, column, n, places, x, dz, dy, rows, written, *args)
            for i in range(n):
                step, dstep = load(dz + rows[i] + column), load(dsteps + i * BYTES)
                store(dstep * softplus_slope(step) if route.softplus else dstep, dz + rows[i] + column)
                drow, target = load(drows + i * BYTES), dx + rows[i] + column
                store(drow + load(target) if add else drow, target)
        if size < BLOCK:
            _unstage(dz, route.dz, places[_ROWS], n, size, 0)
            _unstage(dx, route.dx, places[_ROWS], n, size, route.add)
        for i in range(n):
            for j in range(2 * states):
                sums[blk, places[_PIXELS, i], j] = sum_of_lanes(load(dBC + j * _COLUMN + i * BYTES))


def _backward(job):
    """Write `dx`, `dz` (of the time step before softplus), `dBC`, `ddecay` (of A), `dskip`; of one chain of one link.

    Until a tile is done, dz holds its time steps, so that the walk back need not compute them again.
    """
    record = carray(job, 1)[0]
    route = carray(_records(record.routes), 1)[0]
    batch, blocks, states = record.batch, record.blocks, route.states
    start_memory = np.zeros(((route.length + TILE - 1) // TILE, states, BLOCK), np.float32)
    state_memory = np.zeros((states, BLOCK), np.float32)
    column_memory = np.zeros((4, TILE, LANES), np.float32)
    group_memory = np.zeros((2, states, TILE, LANES), np.float32)
    staged_memory = np.zeros((4, TILE, BLOCK), np.float32)
    own = np.arange(TILE) * _ROW
    places = np.zeros((4, TILE), np.int64)
    while True:
        task = take(job)
        if task >= batch * blocks:
            break
        b, blk = task // blocks, task % blocks
        # the lanes that fill a block up must not hold what another task has left there
        state_memory[:], staged_memory[:] = ZERO, ZERO
        starts, h = address(start_memory), address(state_memory)
        scratch, staged = address(column_memory), address(staged_memory)
        _remember(route, b, blk, places, own, scratch, h, starts, staged)
        _return(route, batch, b, blocks, blk, places, own, h, starts, scratch, group_memory, staged)


@functools.cache
def forward():
    """The forward pass as a C function that takes the address of a `JOB`."""
    return entry("scan's forward pass", JOB, _forward)


@functools.cache
def backward():
    """The backward pass, see `forward`."""
    return entry("scan's backward pass", JOB, _backward)
