"""Depthwise convolution and SiLU through PyTorch's own convolution, in the layout it takes channels last."""

from torch.nn import functional as F


def depthwise_conv_silu(x, weight, bias):
    """See `mmvmamba.kernels.depthwise_conv_silu`."""
    padding = int(weight.shape[-1]) // 2  # an int: a traced size is a tensor, which convolutions of PyTorch 2.4 refuse
    # a permuted channels-last grid is what PyTorch calls torch.channels_last: no copy on the way in or out
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=padding, groups=weight.shape[0])
    return F.silu(y).permute(0, 2, 3, 1)
