"""A linear layer through whichever of PyTorch's two libraries for it is the fast one on the host."""

import torch
from torch.nn import functional as F

_IMAGES = 16  # from so many images on PyTorch gives a convolution of one pixel to oneDNN on a single thread too
_PIXELS = 20  # fewer to an image and the convolution is the slower one
_ELEMENTS = 20480  # of the input; PyTorch keeps smaller convolutions to itself


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
