"""Mixed precision where mmengine has none: on a CPU."""

import contextlib
from collections.abc import Mapping

import torch
from mmengine.model import BaseModule
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn

from mmvmamba.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's mixed-precision wrapper, which insists on a GPU, for a CPU.

    mmcv's operators (suppression of boxes, pooling of regions) take no half precision on a CPU, so necks and heads hand
    on float32; inside them and in the backbone autocast rules.

    Args:
        loss_scale: arguments of `torch.amp.GradScaler`.
        dtype: 'bfloat16' or 'float16'.
        kwargs: as mmengine's `OptimWrapper`.
    """

    def __init__(self, loss_scale: dict, dtype: str, **kwargs):
        OptimWrapper.__init__(self, **kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', **loss_scale)
        self.cast_dtype = getattr(torch, dtype)
        self._scale_update_param = None

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module):
        """Autocast around a forward pass."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(OptimWrapper.optim_context(self, model))
            stack.enter_context(torch.autocast('cpu', dtype=self.cast_dtype))
            for name, module in model.named_modules():
                if isinstance(module, BaseModule) and 'backbone' not in name.split('.'):
                    handle = module.register_forward_hook(lambda module, inputs, output: _as_float32(output))
                    stack.callback(handle.remove)
            yield


def _as_float32(output):
    """Half-precision tensors in nested containers as float32; everything else as it is."""
    if isinstance(output, torch.Tensor):
        return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
    if isinstance(output, Mapping):
        return {key: _as_float32(value) for key, value in output.items()}
    if type(output) in (tuple, list):
        return type(output)(_as_float32(value) for value in output)
    return output
