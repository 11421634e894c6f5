"""Sums of what several programs or routes wrote, each in one launch and in an order that never changes."""

import torch
import triton
import triton.language as tl

from .launch import Launch, on_device, planned
from .numerics import INTERPRETED

BLOCK, WARPS = 1024, 4
"""Numbers of a program of `_add_up`, and warps of any program here."""

_ROWS, _CHANNELS = 32, 32
"""Rows and channels that a program of `_collect` adds up at a time."""

ELEMENTS = _ROWS * _CHANNELS / 32 / WARPS
"""Of those, a lane's."""


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
    p_sums, p_others, p_columns, p_rows, p_other_columns, rows, K: tl.constexpr, D: tl.constexpr, C: tl.constexpr,
    E: tl.constexpr, R: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Add up `sums (rows, K, C + E, D)` and `others (rows, K, R, D)`; a program adds up one of the C + E + R columns.

    To `columns (K, D, C)`, `rows (E, K, D)` and `other_columns (K, D, R)`.
    """
    BLOCKS: tl.constexpr = tl.cdiv(D, BD)
    i = tl.program_id(0)
    o_d = i % BLOCKS * BD + tl.arange(0, BD)
    m_d = o_d < D
    column = i // BLOCKS % (C + E + R)
    i_k = i // BLOCKS // (C + E + R)
    is_other = column >= C + E
    width = tl.where(is_other, R, C + E).to(tl.int64)
    column = tl.where(is_other, column - (C + E), column)
    o_r = tl.arange(0, BR)
    offset = (o_r[:, None] * (K * width) + i_k * width + column) * D + o_d[None, :]
    total = tl.zeros((BR, BD), tl.float32)
    for row in range(0, rows, BR):
        mask = (row + o_r < rows)[:, None] & m_d[None, :]
        o = offset + row * (K * width) * D
        total += tl.load(p_sums + o, mask=mask & (is_other == 0), other=0.0)
        if R > 0:
            total += tl.load(p_others + o, mask=mask & is_other, other=0.0)
    total = tl.sum(total, axis=0)
    o_kd = i_k * D + o_d
    if C > 0:
        tl.store(p_columns + o_kd * C + column, total, mask=m_d & (is_other == 0) & (column < C))
    if E > 0:
        tl.store(p_rows + (column - C) * (K * D) + o_kd, total, mask=m_d & (is_other == 0) & (column >= C))
    if R > 0:
        tl.store(p_other_columns + o_kd * R + column, total, mask=m_d & is_other)


def adding(count: int, size: int, more: bool) -> Launch:
    """`_add_up`, called with its tensors (any for `more` where there is none) and the size of a part."""
    return Launch(_add_up, triton.cdiv(size, BLOCK), COUNT=count, MORE=more, BLOCK=BLOCK, num_warps=WARPS)


@planned
def _adding(count: int, size: int, more: bool, device, dtypes) -> Launch:
    return adding(count, size, more)


def add_up(parts: torch.Tensor, dtype: torch.dtype, more: torch.Tensor | None = None) -> torch.Tensor:
    """The sum over the first dimension of dense `parts`, and of `more` of its shape, in `dtype`.

    The number of parts is compiled in: for routes and the like. Where it depends on the image, use `collecting`.
    """
    # the interpreter cuts off bits where a GPU rounds
    y = parts.new_empty(parts.shape[1:], dtype=torch.float32 if INTERPRETED.value else dtype)
    size = y.numel()
    if size:
        kinds = parts.dtype, None if more is None else more.dtype, y.dtype
        launch = _adding(parts.shape[0], size, more is not None, parts.device, kinds)
        with on_device(parts):
            launch((parts, y if more is None else more, y), size)
    return y if y.dtype == dtype else y.to(dtype)


def collecting(count: int, channels: int, columns: int, rows: int, others: int = 0) -> Launch:
    """`_collect`, called with its tensors (any where there is nothing) and the number of rows to add up."""
    grid = count * (columns + rows + others) * triton.cdiv(channels, _CHANNELS)
    sizes = dict(K=count, D=channels, C=columns, E=rows, R=others)
    return Launch(_collect, grid, **sizes, BR=_ROWS, BD=_CHANNELS, num_warps=WARPS)
