"""Which parts of a detector or a segmentor become shards of their own."""

from torch import nn

from mmvmamba.models.backbones.columnar import Block
from mmvmamba.models.backbones.vmamba import VSSBlock
from mmvmamba.registry import FUNCTIONS


@FUNCTIONS.register_module()
def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Wrapping policy of FSDP: every block of a backbone; the rest belongs to the model as a whole.

    A policy by size wraps heads too, which the toolboxes call by other methods than `forward`, past the wrapper that
    would fetch their parameters.
    """
    return recurse or isinstance(module, (VSSBlock, Block))
