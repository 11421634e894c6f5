"""The scans compiled for the host by numba: one copy of the mathematics for every operator's `cpu` backend.

Everything compiled is in this file because numba's disk cache only notices changes of a function's own file.

A task is one sequence (an image of a batch) and one block of channels. It walks the sequence in tiles of positions that
stay in the first-level cache, lanes are channels, and no two tasks write the same place, so results do not depend on
which thread ran what.

The arithmetic is written in whole vectors (`Vector`) rather than in loops over channels: a compiler that must find the
vectors itself keeps the state of the recurrence in memory and gives up where arrays might overlap.

The width of a block is a constant of the file and the functions are plain ones of the module: a closure over other
compiled functions has a new identity in every process, and the disk cache would never find it again.
"""

import functools
import logging
import operator

import numpy as np
from llvmlite import binding, ir
from numba import carray, cfunc, from_dtype, njit, types
from numba.core import cgutils, event
from numba.extending import intrinsic, models, overload, register_model

LANES = 16 if binding.get_host_cpu_features().get('avx512f') else 8
"""Numbers of a vector; narrower machines split it."""

BLOCK = 48
"""Channels of a task: a multiple of `LANES`, and a divisor of the usual 96, 192, ..."""

TILE = 16
"""Positions that are worked on together; also the distance of the states that the backward pass keeps."""

_VECTOR = 4 * LANES  # bytes
_ROW = 4 * BLOCK  # bytes
_COLUMN = TILE * _VECTOR  # bytes of a vector at every position of a tile

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
_COMPILE = dict(cache=True, error_model='numpy')


class Vector(types.Type):
    """`LANES` float32 that are worked on at once. Operators take two of them, or one and a float32 for all lanes."""

    def __init__(self):
        super().__init__(name=f'Vector({LANES})')


_vector = Vector()
_LLVM_FLOAT, _LLVM_INT = ir.FloatType(), ir.IntType(32)
_LLVM_VECTOR = ir.VectorType(_LLVM_FLOAT, LANES)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, _LLVM_VECTOR)


def _filled(builder, number):
    """A vector of one number."""
    first = builder.insert_element(ir.Constant(_LLVM_VECTOR, ir.Undefined), number, _LLVM_INT(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_LLVM_INT, LANES), [0] * LANES))


def _define(symbol, instruction):
    """Teach numba a binary operator; `contract` lets a product and a sum become one instruction where there is one."""

    @intrinsic
    def emit(typingctx, a, b):
        def codegen(context, builder, signature, arguments):
            a, b = (
                value if kind == _vector else _filled(builder, value)
                for kind, value in zip(signature.args, arguments, strict=True)
            )
            return getattr(builder, instruction)(a, b, flags=('contract',))

        return _vector(a, b), codegen

    @overload(symbol)
    def implementation(a, b):
        if {a, b} in ({_vector}, {_vector, types.float32}):
            return lambda a, b: emit(a, b)
        return None


for _symbol, _instruction in (
    (operator.add, 'fadd'),
    (operator.sub, 'fsub'),
    (operator.mul, 'fmul'),
    (operator.truediv, 'fdiv'),
):
    _define(_symbol, _instruction)


def _pointer(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


@intrinsic
def _load(typingctx, address):
    """The vector at an address."""

    def codegen(context, builder, signature, arguments):
        return builder.load(_pointer(builder, arguments[0], _LLVM_VECTOR), align=4)

    return _vector(types.int64), codegen


@intrinsic
def _store(typingctx, vector, address):
    """Write a vector to an address."""

    def codegen(context, builder, signature, arguments):
        builder.store(arguments[0], _pointer(builder, arguments[1], _LLVM_VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(_vector, types.int64), codegen


@intrinsic
def _number(typingctx, address):
    """The float32 at an address."""

    def codegen(context, builder, signature, arguments):
        return builder.load(_pointer(builder, arguments[0], _LLVM_FLOAT), align=4)

    return types.float32(types.int64), codegen


@intrinsic
def _fill(typingctx, number):
    """A vector of one float32."""

    def codegen(context, builder, signature, arguments):
        return _filled(builder, arguments[0])

    return _vector(types.float32), codegen


@intrinsic
def _multiply_add(typingctx, a, b, c):
    """a * b + c, in one instruction where there is one. Says which product is meant where c is one as well."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(_LLVM_VECTOR, (_LLVM_VECTOR,) * 3)
        function = cgutils.get_or_insert_function(builder.module, kind, f'llvm.fmuladd.v{LANES}f32')
        return builder.call(function, arguments)

    return _vector(_vector, _vector, _vector), codegen


@intrinsic
def _choose_less(typingctx, a, b, yes, no):
    """In each lane `yes` where a < b, else `no`: also where a or b is NaN."""

    def codegen(context, builder, signature, arguments):
        a, b, yes, no = arguments
        return builder.select(builder.fcmp_ordered('<', a, b), yes, no)

    return _vector(_vector, _vector, _vector, _vector), codegen


@intrinsic
def _power_of_two(typingctx, shifted):
    """2**i of integers i, given as i + `_ROUND`."""

    def codegen(context, builder, signature, arguments):
        integers = ir.VectorType(_LLVM_INT, LANES)
        places, one = (ir.Constant(integers, [value] * LANES) for value in (23, 0x3F800000))
        raised = builder.add(builder.shl(builder.bitcast(arguments[0], integers), places), one)
        return builder.bitcast(raised, _LLVM_VECTOR)

    return _vector(_vector), codegen


@intrinsic
def _sum(typingctx, vector):
    """The sum of the lanes, always in the same order on one machine."""

    def codegen(context, builder, signature, arguments):
        name = f'llvm.vector.reduce.fadd.v{LANES}f32'
        kind = ir.FunctionType(_LLVM_FLOAT, (_LLVM_FLOAT, _LLVM_VECTOR))
        add = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(add, (_LLVM_FLOAT(0.0), arguments[0]), fastmath=('reassoc',))

    return types.float32(_vector), codegen


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
    return tuple(np.float32(value) for value in values)


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
_LOG2E, _LN2 = _constants(1.4426950408889634, 0.6931471805599453)
_ROUND = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds to an integer, held in the lowest bits of the sum
_LOWEST, _HIGHEST = _constants(-126, 126)


@njit(**_COMPILE)
def _exp2(x):
    low, high = _fill(_LOWEST), _fill(_HIGHEST)
    x = _choose_less(x, low, low, x)
    x = _choose_less(high, x, high, x)
    shifted = x + _ROUND
    f = x - (shifted - _ROUND)
    p = (((((f * _E6 + _E5) * f + _E4) * f + _E3) * f + _E2) * f + _E1) * f + _E0
    return p * _power_of_two(shifted)


@njit(**_COMPILE)
def _softplus(z):
    """log(1 + exp(z)), accurate relative to itself for any z; above 20 it is z to the last bit."""
    zero = _fill(_ZERO)
    t = _exp2(_choose_less(z, zero, z, zero - z) * _LOG2E)
    s = t / (t + _TWO)
    q = s * s
    return s * ((((q * _T4 + _T3) * q + _T2) * q + _T1) * q + _T0) + _choose_less(z, zero, zero, z)


@njit(**_COMPILE)
def _softplus_slope(u):
    """The derivative of softplus from its value: 1 - exp(-u), accurate relative to itself."""
    small = u * ((((((u * _G6 + _G5) * u + _G4) * u + _G3) * u + _G2) * u + _G1) * u + _ONE)
    return _choose_less(u, _fill(_HALF), small, _fill(_ONE) - _exp2(u * -_LOG2E))


@njit(**_COMPILE)
def _address(array):
    """Where an array lies. Taken anew for every task: numba frees an array after the last use that it sees."""
    return np.int64(array.ctypes.data)


_PIXELS, _ROWS, _WRITTEN, _GROUPS = range(4)
"""What `_walk` notes of a tile's positions: the pixel's number in the batch, where its channels lie in a tensor of all
channels, where they lie in one that is written in the order of `keep_order` (both in bytes), and the address of its
projections. Positions that the last tile lacks repeat its last one; nothing is written there."""


@njit(**_COMPILE)
def _pixel(route, t):
    """Row-major index of the t-th position."""
    return (t % route.height) * route.width + t // route.height if route.by_column else t


@njit(**_COMPILE)
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


@njit(**_COMPILE)
def _fetch(route, size, places):
    """Ask for what a tile reads: on large maps, down the columns, it would be waited for."""
    for i in range(TILE):
        _prefetch(places[_GROUPS, i])
        for byte in range(0, 4 * size, 64):
            _prefetch(route.x + places[_ROWS, i] + byte)
            _prefetch(route.y + places[_WRITTEN, i] + byte)


@njit(**_COMPILE)
def _stage(tensor, places, n, size, buffer):
    """Copy the rows of an incomplete block to a complete one; the lanes that fill it up stay as they are."""
    rows = carray(_floats(buffer), (TILE, BLOCK))
    for i in range(n):
        row = carray(_floats(tensor + places[i]), size)
        for d in range(size):
            rows[i, d] = row[d]


@njit(**_COMPILE)
def _unstage(buffer, tensor, places, n, size, add):
    """The inverse of `_stage`; with `add`, add to what the tensor holds."""
    rows = carray(_floats(buffer), (TILE, BLOCK))
    for i in range(n):
        row = carray(_floats(tensor + places[i]), size)
        for d in range(size):
            row[d] = rows[i, d] + row[d] if add else rows[i, d]


@njit(**_COMPILE)
def _project(groups, rank, weight, bias, u):
    """A vector of time steps before softplus: u = bias + dts @ weight for the positions of a tile.

    Eight positions at a time, so that a weight is loaded once for eight.
    """
    for t in range(0, TILE, 8):
        p0, p1, p2, p3 = groups[t], groups[t + 1], groups[t + 2], groups[t + 3]
        p4, p5, p6, p7 = groups[t + 4], groups[t + 5], groups[t + 6], groups[t + 7]
        z0 = z1 = z2 = z3 = z4 = z5 = z6 = z7 = _load(bias)
        for r in range(rank):
            w = _load(weight + r * _ROW)
            z0 = z0 + w * _number(p0 + 4 * r)
            z1 = z1 + w * _number(p1 + 4 * r)
            z2 = z2 + w * _number(p2 + 4 * r)
            z3 = z3 + w * _number(p3 + 4 * r)
            z4 = z4 + w * _number(p4 + 4 * r)
            z5 = z5 + w * _number(p5 + 4 * r)
            z6 = z6 + w * _number(p6 + 4 * r)
            z7 = z7 + w * _number(p7 + 4 * r)
        first = u + t * _VECTOR
        _store(z0, first)
        _store(z1, first + _VECTOR)
        _store(z2, first + 2 * _VECTOR)
        _store(z3, first + 3 * _VECTOR)
        _store(z4, first + 4 * _VECTOR)
        _store(z5, first + 5 * _VECTOR)
        _store(z6, first + 6 * _VECTOR)
        _store(z7, first + 7 * _VECTOR)


@njit(**_COMPILE)
def _time_steps(route, groups, weight, bias, ready, rows, n, u):
    """A vector of time steps at the n positions of a tile."""
    _project(groups, route.rank, weight, bias, u)
    for i in range(n):
        step = _load(u + i * _VECTOR)
        if route.rank == 0:
            step = step + _load(ready + rows[i])
        if route.softplus:
            step = _softplus(step)
        _store(step, u + i * _VECTOR)


@njit(**_COMPILE)
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
        task = _take(job)
        if task >= routes.shape[0] * batch * blocks:
            break
        h, u, sums = _address(state_memory), _address(column_memory), _address(column_memory[1])
        staged_x, staged_y, staged_ready = (
            _address(staged_memory),
            _address(staged_memory[1]),
            _address(staged_memory[2]),
        )
        b, blk = task // blocks % batch, task % blocks
        for link in range(routes.shape[1]):
            route = routes[task // (blocks * batch), link]
            length = route.length
            c0, size = route.base + blk * BLOCK, min(BLOCK, route.channels - blk * BLOCK)
            whole = size == BLOCK
            state_memory[:] = _ZERO
            _walk(route, b, c0, 0, min(TILE, length), places)
            for t0 in range(0, length, TILE):
                n = min(TILE, length - t0)
                if t0 + TILE < length:
                    _walk(route, b, c0, t0 + TILE, min(TILE, length - t0 - TILE), ahead)
                    _fetch(route, size, ahead)
                x, y, ready, rows, written = route.x, route.y, route.ready, places[_ROWS], places[_WRITTEN]
                if not whole:
                    _stage(x, rows, n, size, staged_x)
                    if rank == 0:
                        _stage(ready, rows, n, size, staged_ready)
                    x, y, ready, rows, written = staged_x, staged_y, staged_ready, own, own
                for column in range(0, _ROW, _VECTOR):
                    weight, bias = route.weight + blk * rank * _ROW + column, route.bias + blk * _ROW + column
                    _time_steps(route, places[_GROUPS], weight, bias, ready + column, rows, n, u)
                    for s in range(states):
                        decay = _load(route.decay + (blk * states + s) * _ROW + column)
                        skip = _load(route.skip + blk * _ROW + column)
                        state = _load(h + s * _ROW + column)
                        for i in range(n):
                            step, token = _load(u + i * _VECTOR), _load(x + rows[i] + column)
                            group = places[_GROUPS, i] + 4 * (rank + s)
                            state = _multiply_add(_exp2(decay * step), state, step * token * _number(group))
                            out = state * _number(group + 4 * states)
                            out = out + (skip * token if s == 0 else _load(sums + i * _VECTOR))
                            if s < states - 1:
                                _store(out, sums + i * _VECTOR)
                            else:
                                target = y + written[i] + column
                                if route.add and whole:
                                    out = out + _load(target)
                                _store(out, target)
                        _store(state, h + s * _ROW + column)
                if not whole:
                    _unstage(staged_y, route.y, places[_WRITTEN], n, size, route.add)
                places, ahead = ahead, places


@njit(**_COMPILE)
def _backward(job):
    """Write `dx`, `dz` (of the time step before softplus), `dBC`, `ddecay` (of A), `dskip`; of one chain of one link.

    Until a tile is done, dz holds its time steps, so that the walk back need not compute them again.
    """
    record = carray(job, 1)[0]
    route = carray(_records(record.routes), 1)[0]
    batch, blocks = record.batch, record.blocks
    rank, states, length = route.rank, route.states, route.length
    tiles = (length + TILE - 1) // TILE
    start_memory = np.zeros((tiles, states, BLOCK), np.float32)
    state_memory = np.zeros((states, BLOCK), np.float32)
    column_memory = np.zeros((5, TILE, LANES), np.float32)
    group_memory = np.zeros((2, states, TILE, LANES), np.float32)
    staged_memory = np.zeros((4, TILE, BLOCK), np.float32)
    own = np.arange(TILE) * _ROW
    places = np.zeros((4, TILE), np.int64)
    while True:
        task = _take(job)
        if task >= batch * blocks:
            break
        starts, h, staged = _address(start_memory), _address(state_memory), _address(staged_memory)
        u = _address(column_memory)
        olds, decays, dsteps, drows = u + _COLUMN, u + 2 * _COLUMN, u + 3 * _COLUMN, u + 4 * _COLUMN
        dBC = _address(group_memory)
        b, blk = task // blocks, task % blocks
        c0, size = route.base + blk * BLOCK, min(BLOCK, route.channels - blk * BLOCK)
        whole = size == BLOCK
        # the lanes that fill a block up must not hold what another task has left there
        state_memory[:], staged_memory[:] = _ZERO, _ZERO
        for tile in range(tiles):
            n = min(TILE, length - tile * TILE)
            _walk(route, b, c0, tile * TILE, n, places)
            x, ready, dz, rows = route.x, route.ready, route.dz, places[_ROWS]
            if not whole:
                x, ready, dz, rows = staged, staged + TILE * _ROW, staged + 2 * TILE * _ROW, own
                _stage(route.x, places[_ROWS], n, size, x)
                if rank == 0:
                    _stage(route.ready, places[_ROWS], n, size, ready)
            for column in range(0, _ROW, _VECTOR):
                weight, bias = route.weight + blk * rank * _ROW + column, route.bias + blk * _ROW + column
                _time_steps(route, places[_GROUPS], weight, bias, ready + column, rows, n, u)
                for i in range(n):
                    _store(_load(u + i * _VECTOR), dz + rows[i] + column)
                for s in range(states):
                    decay = _load(route.decay + (blk * states + s) * _ROW + column)
                    state = _load(h + s * _ROW + column)
                    _store(state, starts + (tile * states + s) * _ROW + column)
                    for i in range(n):
                        step, token = _load(u + i * _VECTOR), _load(x + rows[i] + column)
                        B = _number(places[_GROUPS, i] + 4 * (rank + s))
                        state = _multiply_add(_exp2(decay * step), state, step * token * B)
                    _store(state, h + s * _ROW + column)
            if not whole:
                _unstage(dz, route.dz, places[_ROWS], n, size, 0)
        dA, dD = route.ddecay + (b * blocks + blk) * states * _ROW, route.dskip + (b * blocks + blk) * _ROW
        zero = _fill(_ZERO)
        for column in range(0, _ROW, _VECTOR):
            _store(zero, dD + column)
            for s in range(states):
                _store(zero, dA + s * _ROW + column)
                _store(zero, h + s * _ROW + column)  # from here on the state's gradient
        for tile in range(tiles - 1, -1, -1):
            n = min(TILE, length - tile * TILE)
            _walk(route, b, c0, tile * TILE, n, places)
            x, dz, dy, rows, written = route.x, route.dz, route.dy, places[_ROWS], places[_WRITTEN]
            dx, add = route.dx, route.add
            if not whole:
                x, dz, dy, dx = staged, staged + TILE * _ROW, staged + 2 * TILE * _ROW, staged + 3 * TILE * _ROW
                _stage(route.x, places[_ROWS], n, size, x)
                _stage(route.dz, places[_ROWS], n, size, dz)
                _stage(route.dy, places[_WRITTEN], n, size, dy)
                rows, written, add = own, own, 0
            group_memory[:] = _ZERO
            for column in range(0, _ROW, _VECTOR):
                skip, skipped = _load(route.skip + blk * _ROW + column), _load(dD + column)
                for i in range(n):
                    g = _load(dy + written[i] + column)
                    skipped = skipped + g * _load(x + rows[i] + column)
                    _store(skip * g, drows + i * _VECTOR)
                    _store(zero, dsteps + i * _VECTOR)
                _store(skipped, dD + column)
                for s in range(states):
                    decay = _load(route.decay + (blk * states + s) * _ROW + column)
                    state = _load(starts + (tile * states + s) * _ROW + column)
                    for i in range(n):
                        step, token = _load(dz + rows[i] + column), _load(x + rows[i] + column)
                        a = _exp2(decay * step)
                        _store(a, decays + i * _VECTOR)
                        _store(a * state, olds + i * _VECTOR)
                        entered = step * token * _number(places[_GROUPS, i] + 4 * (rank + s))
                        state = _multiply_add(a, state, entered)
                    dstate, grad_A = _load(h + s * _ROW + column), _load(dA + s * _ROW + column)
                    dB, dC = dBC + s * _COLUMN, dBC + (states + s) * _COLUMN
                    for i in range(n - 1, -1, -1):
                        at = i * _VECTOR
                        step, token = _load(dz + rows[i] + column), _load(x + rows[i] + column)
                        g, decayed = _load(dy + written[i] + column), _load(olds + at)
                        group = places[_GROUPS, i] + 4 * (rank + s)
                        B, C = _number(group), _number(group + 4 * states)
                        grad = dstate + g * C
                        dstate = _load(decays + at) * grad
                        entered = step * token
                        _store(_load(dC + at) + g * (decayed + entered * B), dC + at)
                        _store(_load(dB + at) + grad * entered, dB + at)
                        of_decay = grad * decayed
                        grad_A = grad_A + of_decay * step
                        _store(_load(dsteps + at) + (grad * token * B + of_decay * (decay * _LN2)), dsteps + at)
                        _store(_load(drows + at) + grad * step * B, drows + at)
                    _store(dstate, h + s * _ROW + column)
                    _store(grad_A, dA + s * _ROW + column)
                for i in range(n):
                    step, dstep = _load(dz + rows[i] + column), _load(dsteps + i * _VECTOR)
                    _store(dstep * _softplus_slope(step) if route.softplus else dstep, dz + rows[i] + column)
                    drow, target = _load(drows + i * _VECTOR), dx + rows[i] + column
                    _store(drow + _load(target) if add else drow, target)
            if not whole:
                _unstage(dz, route.dz, places[_ROWS], n, size, 0)
                _unstage(dx, route.dx, places[_ROWS], n, size, route.add)
            sums = carray(_floats(route.dBC), (blocks, batch * length, 2 * states))
            for i in range(n):
                for j in range(2 * states):
                    sums[blk, places[_PIXELS, i], j] = _sum(_load(dBC + j * _COLUMN + i * _VECTOR))


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
