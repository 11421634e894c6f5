"""Linear layers as a CPU has them fast: by the faster of PyTorch's libraries, in pieces that stay in the cache."""

import torch
from torch.nn import functional as F

_IMAGES = 16  # from so many images on PyTorch gives a convolution of one pixel to oneDNN on a single thread too
_PIXELS = 20  # fewer to an image and the convolution is the slower one
_ELEMENTS = 20480  # of the input; PyTorch keeps smaller convolutions to itself
_PIECE = 1 << 21  # elements of a hidden layer that are worked on at a time


def linear(x, weight, bias=None):
    """`torch.nn.functional.linear` for maps of pixels.

    For float32 on a CPU it is written as a convolution of one pixel, the same product: PyTorch has convolutions done by
    oneDNN but matrix products by MKL, which on processors of other makers than Intel leaves the widest instructions
    unused.

    Args:
        x: `(..., C)`.
        weight: `(D, C)`.
        bias: `(D,)`, or None.

    Returns:
        `(..., D)`.
    """
    images = _images(x) if _takes(x, weight) else 0
    if not images:
        return F.linear(x, weight, bias)
    y = F.conv2d(x.reshape(images, 1, -1, x.shape[-1]).permute(0, 3, 1, 2), weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


def gelu_mlp(x: torch.Tensor, first: torch.nn.Module, second: torch.nn.Module) -> torch.Tensor:
    """`second(gelu(first(x)))` of two linear layers.

    In inference on a CPU the hidden layer of a large image costs more in page faults and cache misses than in
    arithmetic; piece by piece it stays in the cache.

    Args:
        x: `(..., C)`.
        first: a layer from C to `first.out_features` features.
        second: a layer from these to D features.

    Returns:
        `(..., D)`.
    """
    captured = torch.compiler.is_compiling() or torch.jit.is_tracing()  # a graph would keep the number of pieces
    if x.device.type != 'cpu' or torch.is_grad_enabled() or captured:
        return second(F.gelu(first(x)))
    pieces = x.flatten(0, -2).split(max(_IMAGES, _PIECE // first.out_features // _IMAGES * _IMAGES))
    return torch.cat([second(F.gelu(first(piece))) for piece in pieces]).view(*x.shape[:-1], -1)


def _takes(x, weight) -> bool:
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # which would keep the number of images
        and x.device.type == weight.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled('cpu')
    )


def _images(x) -> int:
    """Into how many images the pixels are to be divided, 0 for no convolution at all."""
    pixels = x.shape[:-1].numel()
    if torch.get_num_threads() > 1:
        images = 1
    else:
        images = _IMAGES if pixels % _IMAGES == 0 else x.shape[:-2].numel()
        if images < _IMAGES:
            return 0
    return images if pixels >= _PIXELS * images and x.numel() > _ELEMENTS else 0
