"""The recurrence, one step of it for every kernel that scans, and the time step that drives it.

In units of log 2: with u = softplus(z) / ln 2 a decay exp(A dt) is 2^(A u), one special function.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from .numerics import LN2, LOG2E

SOFTPLUS_THRESHOLD = tl.constexpr(28.853900817779268)  # PyTorch's 20, in units of log 2


@triton.jit
def recurrence_step(h, A, u, x, Bs):
    """`h_t = a h_{t-1} + x_t B_t` with the decay `a = 2^(A u_t)`; x comes times the time step. Returns h_t, a."""
    a = tl.exp2(A * u)
    return a * h + x * Bs, a


@triton.jit
def end_state(h, A, u, uxs, Bs, SPEC: tl.constexpr):
    """The state after a tile, from `h` before it; rows of time steps, of x times them, and of B."""
    BL: tl.constexpr = SPEC.BL
    for i in tl.static_range(BL):
        h, _ = recurrence_step(h, A, u[i], uxs[i], Bs[i])
    return h


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
