"""The selective scan in the operators that exporters know: no loop over positions, any sizes.

A sequence is S chunks of T positions. All chunks advance together from a zero start (T steps), a recurrence over the
chunks hands their end states on (S steps), and a replay with the right starts gives the results (T steps). The steps
are `torch.ops.higher_order.scan`, which is ONNX's `Scan`: their number is a size, not a part of the graph. Nothing is
divided by a decay, every exponent is negative or zero for a negative A, and nothing with a factor of N is as long as
the sequence.
"""

import math

import torch
from torch.nn import functional as F

from ..arguments import compute_dtype
from .torch_blocked import time_step


def _recurrence(step, start, inputs, constants=()):
    """`torch.ops.higher_order.scan` along dim 0.

    Args:
        step: `step(*state, *inputs at one position, *constants)` returns the new state's tensors, then results.
        start: the first state's tensors.
        inputs, constants: tensors.

    Returns:
        The last state's tensors, then all steps' results.
    """
    # The operator itself: its Python function would have Dynamo compile every step.
    # It wants states that keep their memory layout, which contiguous operands give it and ONNX does not know.
    # A clone: `contiguous` keeps a tensor whose strides differ where a size is 1.
    start, inputs, constants = (
        [t.clone(memory_format=torch.contiguous_format) for t in tensors] for tensors in (start, inputs, constants)
    )
    return torch.ops.higher_order.scan(step, start, inputs, tuple(constants))


def chunked_scan(u, dt, A, Bs, Cs):
    """Scan sequences in chunks, without the D term.

    Args:
        u, dt: `(T, G, B, S, D)`, position t of chunk s of the sequences of G groups; dt after softplus.
        A: `(G, N, D)`.
        Bs, Cs: `(T, G, B, S, N)`.

    Returns:
        `(T, G, B, S, D)`.
    """
    if A.shape[1] == 1:
        return _one_state(u, dt, A, Bs, Cs)
    _, groups, batch, chunks, channels = u.shape
    A = A[:, None, None]  # (G, 1, 1, N, D)
    dtu = dt * u

    def advance(state, dt, dtu, B, A):  # (G, B, S, N, D)
        return torch.exp(dt[..., None, :] * A) * state + dtu[..., None, :] * B[..., None]

    def local(state, time, dt, dtu, B, A):
        return advance(state, dt, dtu, B, A), time + dt

    def replay(state, dt, dtu, B, C, A):
        state = advance(state, dt, dtu, B, A)
        return state, (C[..., None] * state).sum(-2)

    zeros = u.new_zeros(groups, batch, chunks, channels)
    states = u.new_zeros(groups, batch, chunks, A.shape[3], channels)
    starts = states
    if not (isinstance(chunks, int) and chunks == 1):
        ends, time = _recurrence(local, (states, zeros), (dt, dtu, Bs), (A,))
        starts = _starts(torch.exp(time[..., None, :] * A), ends)
    return _recurrence(replay, (starts,), (dt, dtu, Bs, Cs), (A,))[1]


def _one_state(u, dt, A, Bs, Cs):
    """`chunked_scan` for N = 1."""
    decays, inputs = torch.exp(dt * A[:, :, None]), dt * u * Bs

    def local(state, decay, a, b):
        return a * state + b, decay * a

    def replay(state, a, b):
        state = a * state + b
        return state, state.clone()

    zeros, ones = u.new_zeros(u.shape[1:]), u.new_ones(u.shape[1:])
    ends, decay = _recurrence(local, (zeros, ones), (decays, inputs))
    return _recurrence(replay, (_starts(decay, ends),), (decays, inputs))[1] * Cs


def _starts(decay, ends):
    """The states that chunks start with, from what a chunk makes of its start and its end state from a zero start.

    Args:
        decay, ends: `(G, B, S, ...)`.

    Returns:
        `(G, B, S, ...)`.
    """

    def step(state, decay, end):
        return decay * state + end, state.clone()

    start = ends.new_zeros(ends[:, :, 0].shape)
    starts = _recurrence(step, (start,), (decay.movedim(2, 0), ends.movedim(2, 0)))[1]
    return starts.movedim(0, 2)


def forward(u, delta, A, Bs, Cs, Ds, delta_bias, softplus):
    """See `mmvmamba.kernels.selective_scan`; here `Bs, Cs` are always `(B, K, N, L)`."""
    dtype = compute_dtype(u)
    u, delta, A, Bs, Cs = (t.to(dtype) for t in (u, delta, A, Bs, Cs))
    length, groups = u.shape[2], Bs.shape[1]
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None]
    # a square of positions: the rows are chunks, zeros behind the end change nothing before it
    side = math.ceil(torch.sym_sqrt(length))

    def chunked(t):  # (B, K, D, L) -> (T, K, B, S, D)
        return F.pad(t, (0, side * side - length)).unflatten(3, (side, side)).permute(4, 1, 0, 3, 2)

    def per_group(t):
        return t.unflatten(1, (groups, -1))

    y = chunked_scan(
        *(chunked(per_group(t)) for t in (u, time_step(delta, softplus))),
        A.unflatten(0, (groups, -1)).mT,
        chunked(Bs),
        chunked(Cs),
    )
    y = y.permute(2, 1, 4, 3, 0).flatten(3)[..., :length].flatten(1, 2)
    return y if Ds is None else y + Ds.to(dtype)[:, None] * u
