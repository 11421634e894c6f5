"""What the Triton kernels of all operators share: choices of arithmetic, the machine's size, compiler options."""

import functools

import torch
import triton
import triton.language as tl

from .launch import ALIGNMENT
from .tiles import from_rows, keep, load_tile, row_pointers, store_tile, to_rows  # noqa: F401, imported from here

BT = 16
"""Positions of a tile: the smallest height of a tensor-core product."""

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def numerics(device: torch.device, dtype: torch.dtype) -> dict:
    """Compile-time choices of arithmetic for inputs of `dtype`.

    FAST: the hardware's log2 through libdevice, CUDA only; HIP and the interpreter take Triton's own.
    EXACT: relative accuracy for tiny time steps and products to float32's precision: for float32 inputs.
    OPERAND: dtype of matrix products' operands, 'bf16' or 'fp32'; float16 has too small a range.
    PRECISION: of matrix products of float32 operands.
    """
    cuda = is_cuda(device)
    exact = dtype == torch.float32
    operand = 'bf16' if dtype == torch.bfloat16 else 'fp32'
    precision = 'ieee' if not cuda else 'tf32x3' if exact else 'tf32'
    return dict(FAST=cuda, EXACT=exact, OPERAND=operand, PRECISION=precision)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; the interpreter is one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == 'cuda' else 1


def dense(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor in `dtype` if one is given, contiguous, and at an address that allows `row_pointers`' hint."""
    if dtype is not None and tensor.dtype != dtype:
        return tensor.to(dtype, memory_format=torch.contiguous_format)
    if not tensor.is_contiguous():
        return tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


@triton.jit
def silu(x):
    """x times its sigmoid."""
    return x * sigmoid(x)


@triton.jit
def silu_slope(x):
    """Derivative of `silu`."""
    s = sigmoid(x)
    return s + x * s * (1.0 - s)


@triton.jit
def sigmoid(x):
    """The reciprocal of 1 + exp(-x), as the square of a reciprocal root: a division is seven instructions longer."""
    root = tl.rsqrt(1.0 + tl.exp2(x * -LOG2E))
    return root * root


PROGRAMS_OF_RUNS = 16
"""Programs a multiprocessor that work on runs of pixels with halos: longer runs read fewer halos and weights twice."""


def programs_of_runs(device: torch.device) -> int:
    """Programs that fill the machine: what `share` goes by, for keeping plans."""
    return PROGRAMS_OF_RUNS * multiprocessors(device)


def share(count: int, programs: int, device: torch.device) -> int:
    """How many of `count` items (times `programs`) a program takes, so that the machine is filled."""
    return max(1, count * programs // programs_of_runs(device))


def is_cuda(device: torch.device) -> bool:
    """Whether it is a GPU of NVIDIA's."""
    return device.type == 'cuda' and torch.version.hip is None


def launch_options(warps: int, all_registers: bool) -> dict:
    """How a kernel is compiled for programs of so many warps.

    Args:
        warps: of a program.
        all_registers: let it have all that there are, on CUDA: the compiler would rather spill a few bytes to let more
            programs in.
    """
    return dict(num_warps=warps, num_stages=1, **(dict(maxnreg=min(255, 2048 // warps)) if all_registers else {}))
