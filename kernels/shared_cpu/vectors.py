"""Explicit vectors for code that numba compiles for the host, the mathematics of the scans in them, and entry points.

The arithmetic is written in whole vectors rather than in loops over channels: a compiler that must find the vectors
itself keeps the state of a recurrence in memory and gives up where arrays might overlap.
"""

import hashlib
import logging
import operator
from pathlib import Path

import numpy as np
from llvmlite import binding, ir
from numba import cfunc, from_dtype, njit, types
from numba.core import cgutils, event
from numba.extending import intrinsic, models, overload, register_model

LANES = 16 if binding.get_host_cpu_features().get('avx512f') else 8
"""Numbers of a vector; narrower machines split it."""

BYTES = 4 * LANES
"""Of a vector."""

COMPILE = dict(error_model='numpy', forceinline=True)
"""How every function here is compiled: into its caller, as constants and addresses then stay in registers. Only entry
points go to the disk's cache, see `entry`."""

VERSION = hashlib.sha256(b''.join(path.read_bytes() for path in sorted(Path(__file__).parent.glob('*.py')))).hexdigest()
"""Changes with any file of this folder."""

_logger = logging.getLogger('mmvmamba.kernels')


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
def load(typingctx, address):
    """The vector at an address."""

    def codegen(context, builder, signature, arguments):
        return builder.load(_pointer(builder, arguments[0], _LLVM_VECTOR), align=4)

    return _vector(types.int64), codegen


@intrinsic
def store(typingctx, vector, address):
    """Write a vector to an address."""

    def codegen(context, builder, signature, arguments):
        builder.store(arguments[0], _pointer(builder, arguments[1], _LLVM_VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(_vector, types.int64), codegen


@intrinsic
def number(typingctx, address):
    """The float32 at an address."""

    def codegen(context, builder, signature, arguments):
        return builder.load(_pointer(builder, arguments[0], _LLVM_FLOAT), align=4)

    return types.float32(types.int64), codegen


@intrinsic
def fill(typingctx, number):
    """A vector of one float32."""

    def codegen(context, builder, signature, arguments):
        return _filled(builder, arguments[0])

    return _vector(types.float32), codegen


@intrinsic
def multiply_add(typingctx, a, b, c):
    """a * b + c, in one instruction where there is one. Says which product is meant where c is one as well."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(_LLVM_VECTOR, (_LLVM_VECTOR,) * 3)
        function = cgutils.get_or_insert_function(builder.module, kind, f'llvm.fmuladd.v{LANES}f32')
        return builder.call(function, arguments)

    return _vector(_vector, _vector, _vector), codegen


@intrinsic
def choose_less(typingctx, a, b, yes, no):
    """In each lane `yes` where a < b, else `no`: also where a or b is NaN."""

    def codegen(context, builder, signature, arguments):
        a, b, yes, no = arguments
        return builder.select(builder.fcmp_ordered('<', a, b), yes, no)

    return _vector(_vector, _vector, _vector, _vector), codegen


@intrinsic
def power_of_two(typingctx, shifted):
    """2**i of integers i, given as i + `_ROUND`."""

    def codegen(context, builder, signature, arguments):
        integers = ir.VectorType(_LLVM_INT, LANES)
        places, one = (ir.Constant(integers, [value] * LANES) for value in (23, 0x3F800000))
        raised = builder.add(builder.shl(builder.bitcast(arguments[0], integers), places), one)
        return builder.bitcast(raised, _LLVM_VECTOR)

    return _vector(_vector), codegen


@intrinsic
def sum_of_lanes(typingctx, vector):
    """The sum of the lanes, always in the same order on one machine."""

    def codegen(context, builder, signature, arguments):
        name = f'llvm.vector.reduce.fadd.v{LANES}f32'
        kind = ir.FunctionType(_LLVM_FLOAT, (_LLVM_FLOAT, _LLVM_VECTOR))
        add = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(add, (_LLVM_FLOAT(0.0), arguments[0]), fastmath=('reassoc',))

    return types.float32(_vector), codegen


@intrinsic
def floats(typingctx, address):
    """An address as a pointer to float32."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.int64), codegen


@intrinsic
def take(typingctx, job):
    """The next task of a job: its first number, fetched and raised in one step."""

    def codegen(context, builder, signature, arguments):
        number = ir.IntType(64)
        first = builder.bitcast(arguments[0], number.as_pointer())
        return builder.atomic_rmw('add', first, number(1), 'monotonic')

    return types.int64(job), codegen


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line at an address; nothing waits for it, and an address nobody owns does no harm."""

    def codegen(context, builder, signature, arguments):
        number, line = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), (line, number, number, number))
        ask = cgutils.get_or_insert_function(builder.module, kind, 'llvm.prefetch')
        to_read, keep, data = number(0), number(3), number(1)
        builder.call(ask, (builder.inttoptr(arguments[0], line), to_read, keep, data))
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
_ONE, _TWO, ZERO, _HALF = _constants(1, 2, 0, 0.5)
_LOG2E, LN2 = _constants(1.4426950408889634, 0.6931471805599453)
_ROUND = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds to an integer, held in the lowest bits of the sum
_LOWEST, _HIGHEST = _constants(-126, 126)


@njit(**COMPILE)
def exp2(x):
    low, high = fill(_LOWEST), fill(_HIGHEST)
    x = choose_less(x, low, low, x)
    x = choose_less(high, x, high, x)
    shifted = x + _ROUND
    f = x - (shifted - _ROUND)
    p = (((((f * _E6 + _E5) * f + _E4) * f + _E3) * f + _E2) * f + _E1) * f + _E0
    return p * power_of_two(shifted)


@njit(**COMPILE)
def softplus(z):
    """log(1 + exp(z)), accurate relative to itself for any z; above 20 it is z to the last bit."""
    zero = fill(ZERO)
    t = exp2(choose_less(z, zero, z, zero - z) * _LOG2E)
    s = t / (t + _TWO)
    q = s * s
    return s * ((((q * _T4 + _T3) * q + _T2) * q + _T1) * q + _T0) + choose_less(z, zero, zero, z)


@njit(**COMPILE)
def softplus_slope(u):
    """The derivative of softplus from its value: 1 - exp(-u), accurate relative to itself."""
    small = u * ((((((u * _G6 + _G5) * u + _G4) * u + _G3) * u + _G2) * u + _G1) * u + _ONE)
    return choose_less(u, fill(_HALF), small, fill(_ONE) - exp2(u * -_LOG2E))


@njit(**COMPILE)
def silu(p):
    """p * sigmoid(p)."""
    return p / (exp2(p * -_LOG2E) + _ONE)


@njit(**COMPILE)
def sigmoid(p):
    """1 / (1 + exp(-p))."""
    return fill(_ONE) / (exp2(p * -_LOG2E) + _ONE)


@njit(**COMPILE)
def address(array):
    """Where an array lies. Taken anew for every task: numba frees an array after the last use that it sees."""
    return np.int64(array.ctypes.data)


class _Announcement(event.Listener):
    """Says once that a function is being compiled, which can be neither heard nor seen otherwise."""

    def __init__(self, name):
        self._message = f'CPU backend: compiling the {name}, some seconds, once on this machine'

    def on_start(self, event):
        if self._message:
            _logger.warning(self._message)
            self._message = None

    def on_end(self, event):
        pass


def entry(name: str, job: np.dtype, function):
    """A C function that takes the address of a record of type `job`, compiled or from the disk's cache.

    The cache finds compiled code by the name of the function and notices changes of its file only, not of the functions
    that it calls from elsewhere. So the name is made to change with every file of this folder.
    """
    function.__qualname__ = f'{function.__name__}_{VERSION[:16]}'
    signature = types.void(types.CPointer(from_dtype(job)))
    with event.install_listener('numba:compile', _Announcement(name)):
        return cfunc(signature, cache=True, error_model='numpy')(function)
