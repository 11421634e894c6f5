"""Root mean square normalisation in half precision, on every PyTorch."""

import torch
from torch import nn
from torch.nn import functional as F

from .precision import widened

# Before, rms_norm was squares and roots in the input's own dtype: in float16 its gradient overflows for small inputs.
_COMPUTES_WIDE = tuple(int(part) for part in torch.__version__.split('.')[:2]) >= (2, 6)


class RMSNorm(nn.RMSNorm):
    """PyTorch's own, that computes in float32 whatever the dtype of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if _COMPUTES_WIDE:
            return super().forward(x)
        weight = None if self.weight is None else widened(self.weight)
        return F.rms_norm(widened(x), self.normalized_shape, weight, self.eps).to(x.dtype)
