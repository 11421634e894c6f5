"""Depthwise convolution, bias and SiLU in one pass over a channels-last grid, forward and backward.

Backward recomputes the convolution: one kernel turns dy into the gradient before SiLU and sums weights and bias, one
partial a program; the forward kernel with mirrored taps then gives dx. No atomics.
"""

import torch
import triton
import triton.language as tl

from ..triton_math import multiprocessors, silu, silu_slope

BP, BP_BACK, BD = 16, 8, 64
"""Pixels of a tile, forward and backward, and its channels."""


@triton.jit
def _tap(p_x, i_b, h, w, o_d, mask, H, W, D: tl.constexpr):
    """One neighbour of every pixel of a tile, zero outside the grid."""
    m = mask & ((h >= 0) & (h < H) & (w >= 0) & (w < W))[:, None]
    offset = (h * W + w)[:, None] * D + o_d[None, :]
    return tl.load(p_x + i_b.to(tl.int64) * H * W * D + offset, mask=m, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=['H', 'W', 'tiles'])
def _convolve(
    p_x, p_weight, p_bias, p_y, H, W, tiles, D: tl.constexpr, KS: tl.constexpr, FORWARD: tl.constexpr,
    BIAS: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """y = silu(conv(x) + bias), or with FORWARD unset the adjoint of the convolution alone."""
    BLOCKS: tl.constexpr = tl.cdiv(D, BD)
    i = tl.program_id(0)
    o_d = (i % BLOCKS) * BD + tl.arange(0, BD)
    m_d = o_d < D
    i_b = i // BLOCKS // tiles
    o_p = (i // BLOCKS % tiles) * BP + tl.arange(0, BP)
    mask = (o_p < H * W)[:, None] & m_d[None, :]
    h = o_p // W
    w = o_p - h * W
    z = tl.zeros((BP, BD), tl.float32)
    if BIAS:
        z += tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(KS * KS):
        weight = tl.load(p_weight + o_d * (KS * KS) + tap, mask=m_d, other=0.0).to(tl.float32)
        dh = tap // KS - KS // 2 if FORWARD else KS // 2 - tap // KS
        dw = tap % KS - KS // 2 if FORWARD else KS // 2 - tap % KS
        z += _tap(p_x, i_b, h + dh, w + dw, o_d, mask, H, W, D) * weight[None, :]
    if FORWARD:
        z = silu(z)
    p_y += i_b.to(tl.int64) * H * W * D
    tl.store(p_y + o_p[:, None] * D + o_d[None, :], z.to(p_y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['H', 'W', 'tiles', 'total', 'share'])
def _differentiate(
    p_dy, p_x, p_weight, p_bias, p_dz, p_dweight, p_dbias, H, W, tiles, total, share,
    D: tl.constexpr, KS: tl.constexpr, BIAS: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Write dz, and for a run of `share` of the `total` tiles `dweight (runs, k*k, D)` and `dbias (runs, D)`."""
    BLOCKS: tl.constexpr = tl.cdiv(D, BD)
    i_run = tl.program_id(0) // BLOCKS
    o_d = (tl.program_id(0) % BLOCKS) * BD + tl.arange(0, BD)
    m_d = o_d < D
    bias = tl.zeros((BD,), tl.float32)
    if BIAS:
        bias = tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    dbias = tl.zeros((BD,), tl.float32)
    p_dweight += i_run * KS * KS * D + o_d
    for tap in tl.static_range(KS * KS):
        tl.store(p_dweight + tap * D, tl.zeros((BD,), tl.float32), mask=m_d)
    tl.debug_barrier()
    for i in range(i_run * share, tl.minimum(total, (i_run + 1) * share)):
        i_b = i // tiles
        o_p = (i % tiles) * BP + tl.arange(0, BP)
        mask = (o_p < H * W)[:, None] & m_d[None, :]
        h = o_p // W
        w = o_p - h * W
        z = tl.zeros((BP, BD), tl.float32) + bias[None, :]
        for tap in tl.static_range(KS * KS):
            weight = tl.load(p_weight + o_d * (KS * KS) + tap, mask=m_d, other=0.0).to(tl.float32)
            x = _tap(p_x, i_b, h + (tap // KS - KS // 2), w + (tap % KS - KS // 2), o_d, mask, H, W, D)
            z += x * weight[None, :]
        offset = i_b.to(tl.int64) * H * W * D + o_p[:, None] * D + o_d[None, :]
        dz = tl.load(p_dy + offset, mask=mask, other=0.0).to(tl.float32) * silu_slope(z)
        tl.store(p_dz + offset, dz.to(p_dz.dtype.element_ty), mask=mask)
        dbias += tl.sum(dz, axis=0)
        for tap in tl.static_range(KS * KS):  # read again, and sums in memory: all taps at once are too many registers
            x = _tap(p_x, i_b, h + (tap // KS - KS // 2), w + (tap % KS - KS // 2), o_d, mask, H, W, D)
            dweight = tl.load(p_dweight + tap * D, mask=m_d, other=0.0) + tl.sum(dz * x, axis=0)
            tl.store(p_dweight + tap * D, dweight, mask=m_d)
        tl.debug_barrier()
    tl.store(p_dbias + i_run * D + o_d, dbias, mask=m_d)


def _check_size(x) -> None:
    if x[0].numel() >= 1 << 31:
        raise ValueError(
            f'depthwise_conv_silu: x has shape {tuple(x.shape)}; the triton backend indexes an image with 32 bits, '
            "H*W*D must stay below 2**31; use smaller images or backend='torch'"
        )


def _run(x, weight, bias, forward):
    batch, height, width, channels = x.shape
    y = torch.empty_like(x)
    if batch:
        _check_size(x)
        tiles = triton.cdiv(height * width, BP)
        with torch.cuda.device_of(x):
            _convolve[(batch * tiles * triton.cdiv(channels, BD),)](
                *(x, weight, weight if bias is None else bias, y, height, width, tiles),
                **dict(D=channels, KS=weight.shape[-1], FORWARD=forward, BIAS=bias is not None and forward),
                **dict(BP=BP, BD=BD, num_warps=1),
            )
    return y


def forward(x, weight, bias):
    """See `mmvmamba.kernels.depthwise_conv_silu`; the result has the dtype of x."""
    bias = None if bias is None else bias.contiguous()
    return _run(x.contiguous(), weight.contiguous(), bias, forward=True)


def backward(dy, x, weight, bias):
    """Gradients in the order of `forward`'s tensors; that of an absent bias is empty."""
    dy, x, weight, bias = (None if t is None else t.contiguous() for t in (dy, x, weight, bias))
    batch, height, width, channels = x.shape
    size, blocks = weight.shape[-1], triton.cdiv(channels, BD)
    tiles = triton.cdiv(height * width, BP_BACK)
    total = batch * tiles
    runs = max(1, min(total, 16 * multiprocessors(x.device) // blocks))
    dz = torch.empty_like(x)
    dweight = x.new_zeros((runs, size * size, channels), dtype=torch.float32)
    dbias = x.new_zeros((runs, channels), dtype=torch.float32)
    if batch:
        _check_size(x)
        with torch.cuda.device_of(x):
            _differentiate[(runs * blocks,)](
                *(dy, x, weight, weight if bias is None else bias, dz, dweight, dbias),
                *(height, width, tiles, total, triton.cdiv(total, runs)),
                **dict(D=channels, KS=size, BIAS=bias is not None, BP=BP_BACK, BD=BD, num_warps=1),
            )
    dx = _run(dz, weight, None, forward=False)
    dweight = dweight.sum(0).T.reshape(weight.shape)
    return dx, dweight, dbias.new_empty(0) if bias is None else dbias.sum(0)
