"""What stays float32 where the rest of a network is of half precision."""

import torch


def widened(x: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or as it is if that is float32 or more."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
