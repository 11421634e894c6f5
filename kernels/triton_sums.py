"""Sums of what several programs or routes wrote, each in one launch and in an order that never changes."""

import torch
import triton
import triton.language as tl

from .triton_launch import Launch, on_device, planned

_BLOCK = 1024
"""Numbers of a program of `_add_up`."""

_ROWS, _CHANNELS = 32, 32
"""Rows and channels that a program of `_collect` adds up at a time."""


@triton.jit(do_not_specialize=['size'])
def _add_up(p_parts, p_more, p_y, size, COUNT: tl.constexpr, MORE: tl.constexpr, BLOCK: tl.constexpr):
    """`parts (COUNT, size)` and with MORE `more (size,)` as one sum, in float32 until it is stored."""
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = o < size
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in tl.static_range(COUNT):
        total += tl.load(p_parts + o, mask=mask, other=0.0).to(tl.float32)
        p_parts += tl.cast(size, tl.int64)
    if MORE:
        total += tl.load(p_more + o, mask=mask, other=0.0).to(tl.float32)
    tl.store(p_y + o, total.to(p_y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['rows'])
def _collect(
    p_sums, p_dweight, p_dA, p_dskip, p_dbias, p_dweights, rows, K: tl.constexpr, D: tl.constexpr, N: tl.constexpr,
    R: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradients of parameters from `sums (rows, K, N + 2, D)`, the states', skip, bias, and `dweight (rows, K, R, D)`.

    To `dA (K, D, N)`, `dskip (K, D)`, `dbias (K, D)`, `dweights (K, D, R)`. A program adds up one of them.
    """
    BLOCKS: tl.constexpr = tl.cdiv(D, BD)
    i = tl.program_id(0)
    o_d = i % BLOCKS * BD + tl.arange(0, BD)
    m_d = o_d < D
    column = i // BLOCKS % (N + 2 + R)
    i_k = i // BLOCKS // (N + 2 + R)
    of_weight = column >= N + 2
    width = tl.where(of_weight, R, N + 2).to(tl.int64)
    column = tl.where(of_weight, column - (N + 2), column)
    o_r = tl.arange(0, BR)
    offset = (o_r[:, None] * (K * width) + i_k * width + column) * D + o_d[None, :]
    total = tl.zeros((BR, BD), tl.float32)
    for row in range(0, rows, BR):
        mask = (row + o_r < rows)[:, None] & m_d[None, :]
        o = offset + row * (K * width) * D
        total += tl.load(p_sums + o, mask=mask & (not of_weight), other=0.0)
        total += tl.load(p_dweight + o, mask=mask & of_weight, other=0.0)
    total = tl.sum(total, axis=0)
    o_kd = i_k * D + o_d
    tl.store(p_dweights + o_kd * R + column, total, mask=m_d & of_weight)
    tl.store(p_dA + o_kd * N + column, total, mask=m_d & (not of_weight) & (column < N))
    tl.store(p_dskip + o_kd, total, mask=m_d & (not of_weight) & (column == N))
    tl.store(p_dbias + o_kd, total, mask=m_d & (not of_weight) & (column == N + 1))


@planned
def _adding(count: int, size: int, more, device, dtypes) -> Launch:
    return Launch(_add_up, triton.cdiv(size, _BLOCK), COUNT=count, MORE=more, BLOCK=_BLOCK, num_warps=4)


def add_up(parts: torch.Tensor, dtype: torch.dtype, more: torch.Tensor | None = None) -> torch.Tensor:
    """The sum over the first dimension of dense `parts`, and of `more` of its shape, in `dtype`."""
    y = parts.new_empty(parts.shape[1:], dtype=dtype)
    size = y.numel()
    if size:
        kinds = parts.dtype, None if more is None else more.dtype, dtype
        launch = _adding(parts.shape[0], size, more is not None, parts.device, kinds)
        with on_device(parts):
            launch((parts, y if more is None else more, y), size)
    return y


def collecting(count: int, channels: int, states: int, rank: int) -> Launch:
    """`_collect`, called with its tensors and the number of rows."""
    grid = count * (states + 2 + rank) * triton.cdiv(channels, _CHANNELS)
    return Launch(_collect, grid, K=count, D=channels, N=states, R=rank, BR=_ROWS, BD=_CHANNELS, num_warps=4)
