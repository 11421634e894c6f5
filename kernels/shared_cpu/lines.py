"""FastVim's passes over the tokens compiled for the host by numba: pool the lines, finish the mixer, and back.

A task is one line (a row or a column of the grid) of one image. The pass that pools leaves what the skips give every
token, summed over both directions, in the memory that the result, or a gradient, takes later: writing one number down
costs less than convolving twice again. No two tasks write the same place, so results do not depend on which thread ran
what.
"""

import functools

import numpy as np
from numba import carray, njit

from .vectors import (
    BYTES,
    COMPILE,
    LANES,
    ZERO,
    address,
    entry,
    fill,
    load,
    sigmoid,
    silu,
    store,
    sum_of_lanes,
    take,
)

TAPS = 4
"""Of the causal convolutions: the width that every published model has."""

PACKED = 2 * (TAPS + 2)
"""Parameters of a channel: the taps of both directions, then both biases, then both skips."""

_CHUNK = 256
"""Bytes of a token that are worked on before the next token: four cache lines. Tokens often lie a multiple of 2,048
bytes apart, so most of a line's would fall into the same few places of the first-level cache. A window of them must fit
together with the spans' sums."""

_REACH = TAPS - 1
_SUMS = TAPS + 2  # a direction's gradients that are sums over tokens: of the taps, the convolution's bias, the skip
_HALF, _ONE = np.float32(0.5), np.float32(1)

JOB = np.dtype(
    [
        *(
            (name, np.int64)
            for name in (
                *('next', 'batch', 'lines', 'line', 'spans', 'rows', 'planes', 'outer', 'inner', 'channels', 'normed'),
                *('xz', 'packed', 'taps', 'bias', 'skip', 'pooled', 'mixed', 'scanned', 'norm', 'out'),
                *('dout', 'dxz', 'dy', 'dscanned', 'dpooled', 'dnorm', 'sums'),
            )
        ),
        ('share', np.float64),
        ('eps', np.float64),
    ]
)
"""A grid as the compiled functions read it: sizes, addresses of contiguous float32. `next` is the first untaken task.

The sequence runs line by line, through `planes` tokens at each of a line's places: token i of line l is the pixel
`l % rows * outer + i // planes * inner + i % planes + l // rows`, as planes that are the outermost axis of the sequence
repeat the lines. Tokens `i, i + spans, ...` of a line are pooled: one plane's, or a token alone where `spans = line`.
S is the number of all spans; the leading 2 stands for the directions.

    xz, dxz (B, L, 2 channels)                  tokens, then gates
    packed (channels / LANES, PACKED, LANES)    parameters as `_pool` reads them
    taps (2, TAPS, channels), bias, skip (2, channels)  the same as `_unpool` does
    norm (2, channels)                          weight and bias, read if `normed`
    pooled, scanned, dpooled (2, B, S, channels), dscanned (B, S, channels)
    mixed, out, dout, dy (B, L, channels)       mixed: what both skips give a token, may be the memory of out or dy
                                                dy: of what each direction adds to a token
    dnorm (B * lines, 2, channels)              sums over a line's tokens
    sums (B * lines, 2, TAPS + 2, channels)     likewise: of the taps, the convolution's bias, the skip
    share                                       of a token in its pooled span
"""


@njit(**COMPILE)
def _window(job, task, base, stride, zeros, rows):
    """Addresses of a line's tokens and of the `_REACH` before and behind it; of zeros outside the sequence."""
    b, line = task // job.lines, job.line
    first, length = task % job.lines * line - _REACH, job.lines * line
    for j in range(line + 2 * _REACH):
        t = first + j
        which, i = t // line, t % line
        pixel = which % job.rows * job.outer + i // job.planes * job.inner + i % job.planes + which // job.rows
        rows[j] = base + (b * length + pixel) * stride if 0 <= t < length else zeros


@njit(**COMPILE)
def _convolve(job, way, rows, i, column):
    """The convolution of one direction at token i of a line: forth (0) it ends there, back (1) it begins there."""
    width = 4 * job.channels
    p = load(job.bias + way * width + column)
    for tap in range(TAPS):
        row = rows[i + 2 * _REACH - tap] if way else rows[i + tap]
        p = p + load(job.taps + (way * TAPS + tap) * width + column) * load(row + column)
    return p


@njit(**COMPILE)
def _span(job, task, i):
    """Where the span of a line's i-th token lies in `pooled`; the other direction's is `_direction(job)` further."""
    t = task % job.lines * job.line + i
    line = task // job.lines * job.lines + t // job.line
    return 4 * job.channels * (line * job.spans + t % job.line % job.spans)


@njit(**COMPILE)
def _direction(job):
    """Bytes of one direction in `pooled`."""
    return 4 * job.channels * job.batch * job.lines * job.spans


@njit(**COMPILE)
def _activated(packed, way, a, b, c, d):
    """A direction's convolution over four tokens' vectors, the farthest first, behind its SiLU."""
    taps = packed + way * TAPS * BYTES
    p = load(packed + (2 * TAPS + way) * BYTES) + load(taps) * a
    p = p + load(taps + BYTES) * b
    p = p + load(taps + 2 * BYTES) * c
    return silu(p + load(taps + 3 * BYTES) * d)


@njit(**COMPILE)
def _pool_token(rows, i, packed, first, last, mixed, target, far, begins, ends, share):
    """Some vectors of a line's i-th token: into `mixed`, and added to their span, which `begins` or `ends` with it."""
    r0, r1, r2, r3 = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
    r4, r5, r6 = rows[i + 4], rows[i + 5], rows[i + 6]
    for column in range(first, last, BYTES):
        own = packed + PACKED * column
        token = load(r3 + column)
        forth = _activated(own, 0, load(r0 + column), load(r1 + column), load(r2 + column), token)
        back = _activated(own, 1, load(r6 + column), load(r5 + column), load(r4 + column), token)
        skips = own + (2 * TAPS + 2) * BYTES
        store(forth * load(skips) + back * load(skips + BYTES), mixed + column)
        if not begins:
            forth, back = forth + load(target + column), back + load(target + far + column)
        if ends:
            forth, back = forth * share, back * share
        store(forth, target + column)
        store(back, target + far + column)


def _pool(jobs):
    """Write `pooled` and `mixed`."""
    job = carray(jobs, 1)[0]
    width, share, far = 4 * job.channels, np.float32(job.share), _direction(job)
    line, spans, packed, xz = job.line, job.spans, job.packed, job.xz
    zeros = np.zeros(job.channels, np.float32)
    rows = np.zeros(line + 2 * _REACH, np.int64)
    while True:
        task = take(jobs)
        if task >= job.batch * job.lines:
            break
        _window(job, task, xz, 2 * width, address(zeros), rows)
        pooled, mixed = job.pooled + _span(job, task, 0), job.mixed
        for first in range(0, width, _CHUNK):
            last, span = min(first + _CHUNK, width), 0
            for i in range(line):
                own = mixed + (rows[i + _REACH] - xz) // 2
                target, begins, ends = pooled + span * width, i < spans, i >= line - spans
                _pool_token(rows, i, packed, first, last, own, target, far, begins, ends, share)
                span = span + 1 if span < spans - 1 else 0


@njit(**COMPILE)
def _mix(job, task, i, place, ys):
    """What a token is before norm and gate: the mean of both directions; its mean and 1 / deviation, or 0 and 1."""
    width, far = 4 * job.channels, _direction(job)
    scanned, mixed = job.scanned + _span(job, task, i), job.mixed + place
    total = fill(ZERO)
    for column in range(0, width, BYTES):
        y = (load(scanned + column) + load(scanned + far + column) + load(mixed + column)) * _HALF
        store(y, ys + column)
        total = total + y
    if not job.normed:
        return ZERO, _ONE
    each = np.float32(1 / job.channels)
    mean = sum_of_lanes(total) * each
    squares = fill(ZERO)
    for column in range(0, width, BYTES):
        y = load(ys + column) - mean
        squares = squares + y * y
    return mean, _ONE / np.sqrt(sum_of_lanes(squares) * each + np.float32(job.eps))


def _finish(jobs):
    """Write `out`."""
    job = carray(jobs, 1)[0]
    width = 4 * job.channels
    zeros, y_memory = np.zeros(job.channels, np.float32), np.zeros(job.channels, np.float32)
    rows = np.zeros(job.line + 2 * _REACH, np.int64)
    while True:
        task = take(jobs)
        if task >= job.batch * job.lines:
            break
        ys = address(y_memory)
        _window(job, task, job.xz, 2 * width, address(zeros), rows)
        for i in range(job.line):
            token = rows[i + _REACH]
            place = (token - job.xz) // 2
            mean, deviation = _mix(job, task, i, place, ys)
            target = job.out + place
            for column in range(0, width, BYTES):
                y = (load(ys + column) - mean) * deviation
                if job.normed:
                    y = y * load(job.norm + column) + load(job.norm + width + column)
                store(y * silu(load(token + width + column)), target + column)


@njit(**COMPILE)
def _add(vector, place):
    store(load(place) + vector, place)


def _unfinish(jobs):
    """Write the gates' half of `dxz`, and `dy`, `dscanned`, `dnorm`."""
    job = carray(jobs, 1)[0]
    width, each = 4 * job.channels, np.float32(1 / job.channels)
    zeros = np.zeros(job.channels, np.float32)
    token_memory = np.zeros((2, job.channels), np.float32)
    sum_memory = np.zeros((2, job.channels), np.float32)
    rows = np.zeros(job.line + 2 * _REACH, np.int64)
    while True:
        task = take(jobs)
        if task >= job.batch * job.lines:
            break
        ys, sums = address(token_memory), address(sum_memory)
        dys = ys + width
        sum_memory[:] = ZERO
        _window(job, task, job.xz, 2 * width, address(zeros), rows)
        for i in range(job.line):
            token = rows[i + _REACH]
            place = (token - job.xz) // 2
            mean, deviation = _mix(job, task, i, place, ys)
            plain = along = fill(ZERO)
            for column in range(0, width, BYTES):
                z, d = load(token + width + column), load(job.dout + place + column)
                s = sigmoid(z)
                normed = y = (load(ys + column) - mean) * deviation
                g = d * z * s
                if job.normed:
                    weight = load(job.norm + column)
                    normed = y * weight + load(job.norm + width + column)
                    _add(g * y, sums + column)
                    _add(g, sums + width + column)
                    g = g * weight
                    plain, along = plain + g, along + g * y
                store(d * normed * (s * (z * (fill(_ONE) - s) + _ONE)), job.dxz + 2 * place + width + column)
                store(y, ys + column)
                store(g, dys + column)
            shift, slope = sum_of_lanes(plain) * each, sum_of_lanes(along) * each
            total = job.dscanned + _span(job, task, i)
            for column in range(0, width, BYTES):
                dy = (load(dys + column) - load(ys + column) * slope - shift) * (deviation * _HALF)
                store(dy, job.dy + place + column)
                if i >= job.spans:  # not the first of its span
                    dy = dy + load(total + column)
                store(dy, total + column)
        for column in range(0, 2 * width, BYTES):
            store(load(sums + column), job.dnorm + 2 * task * width + column)


@njit(**COMPILE)
def _differentiate(job, task, way, column, rows, drows, spans, gradients, sums):
    """A direction's gradients before its SiLU, at a line's tokens and those that read them; `sums` is added to."""
    width, share = 4 * job.channels, np.float32(job.share)
    first, length = task % job.lines * job.line, job.lines * job.line
    skip, dpooled = load(job.skip + way * width + column), job.dpooled + way * _direction(job)
    lead = _REACH if way else 0  # tokens before the line (back) or behind it (forth) have read the line's
    for j in range(job.line + _REACH):
        i = j - lead
        dp = fill(ZERO)
        if 0 <= first + i < length:
            dy = load(drows[i + _REACH] + column)
            p = _convolve(job, way, rows, i, column)
            s = sigmoid(p)
            du = dy * skip + load(dpooled + spans[i + _REACH] + column) * share
            dp = du * (s * (p * (fill(_ONE) - s) + _ONE))
            if 0 <= i < job.line:
                for tap in range(TAPS):
                    row = rows[i + 2 * _REACH - tap] if way else rows[i + tap]
                    _add(dp * load(row + column), sums + tap * BYTES)
                _add(dp, sums + TAPS * BYTES)
                _add(dy * p * s, sums + (TAPS + 1) * BYTES)
        store(dp, gradients + j * BYTES)


def _unpool(jobs):
    """Write the tokens' half of `dxz`, and `sums`."""
    job = carray(jobs, 1)[0]
    width, line = 4 * job.channels, job.line
    zeros = np.zeros(job.channels, np.float32)
    rows, drows = np.zeros(line + 2 * _REACH, np.int64), np.zeros(line + 2 * _REACH, np.int64)
    spans = np.zeros(line + 2 * _REACH, np.int64)
    gradient_memory = np.zeros((2, line + _REACH, LANES), np.float32)
    sum_memory = np.zeros((2 * _SUMS, LANES), np.float32)
    while True:
        task = take(jobs)
        if task >= job.batch * job.lines:
            break
        forth, sums = address(gradient_memory), address(sum_memory)
        back = forth + (line + _REACH) * BYTES
        _window(job, task, job.xz, 2 * width, address(zeros), rows)
        _window(job, task, job.dy, width, address(zeros), drows)
        for j in range(line + 2 * _REACH):
            spans[j] = _span(job, task, j - _REACH)
        for column in range(0, width, BYTES):
            sum_memory[:] = ZERO
            _differentiate(job, task, 0, column, rows, drows, spans, forth, sums)
            _differentiate(job, task, 1, column, rows, drows, spans, back, sums + _SUMS * BYTES)
            for i in range(line):
                dx = fill(ZERO)
                for tap in range(TAPS):
                    weight = job.taps + tap * width + column
                    dx = dx + load(weight) * load(forth + (i + _REACH - tap) * BYTES)
                    dx = dx + load(weight + TAPS * width) * load(back + (i + tap) * BYTES)
                store(dx, job.dxz + (rows[i + _REACH] - job.xz) + column)
            for j in range(2 * _SUMS):
                store(load(sums + j * BYTES), job.sums + (2 * _SUMS * task + j) * width + column)


@functools.cache
def pool():
    """The pass that pools, as a C function that takes the address of a `JOB`."""
    return entry('pooling of lines', JOB, _pool)


@functools.cache
def finish():
    """The pass from the scanned lines to the result, see `pool`."""
    return entry("pooled scan's last pass", JOB, _finish)


@functools.cache
def unfinish():
    """The gradients of `finish`, see `pool`."""
    return entry("pooled scan's last pass, backward", JOB, _unfinish)


@functools.cache
def unpool():
    """The gradients of `pool`, see there."""
    return entry('pooling of lines, backward', JOB, _unpool)
