"""What our backbones share: weights that are loaded strictly, and stages that are frozen."""

from mmengine.model import BaseModule, initialize
from torch import nn

from mmvmamba import checkpoints


class BaseBackbone(BaseModule):
    """A backbone with `init_cfg=dict(type='Pretrained', checkpoint=...)` and `frozen_stages`.

    mmengine's own loader takes what fits and goes on without a word about the rest; this one is
    `mmvmamba.checkpoints.load`, with its `trust` if `init_cfg` has that key.

    Attributes:
        family: which of the translations of `checkpoints` its published names need.
        frozen_stages: -1 trains everything; 0 freezes what comes before the layers; n also freezes n layers.
    """

    family: str
    frozen_stages = -1

    def init_weights(self) -> None:
        """Load the checkpoint of `init_cfg`, once; parameters are otherwise as the constructor initialised them.

        Raises:
            TypeError: `init_cfg` is neither a dict nor a list of dicts.
            FileNotFoundError, CheckpointError: see `checkpoints.load`.
        """
        entries = self.init_cfg if isinstance(self.init_cfg, (list, tuple)) else [self.init_cfg or {}]
        if not all(isinstance(entry, dict) for entry in entries):
            raise TypeError(
                f'{type(self).__name__}: init_cfg={self.init_cfg!r}; expected a dict such as '
                f"dict(type='Pretrained', checkpoint='file.pth'), or a list of dicts"
            )
        pretrained = [entry for entry in entries if entry.get('type') == 'Pretrained']
        if not pretrained:
            super().init_weights()
        elif not self.is_init:
            initialize(self, [entry for entry in entries if entry not in pretrained])
            for entry in pretrained:
                checkpoints.load(entry['checkpoint'], self, trust=entry.get('trust', False))
            self.is_init = True

    def _freeze(self, frozen_stages: int, built: int) -> None:
        """Check and keep `frozen_stages`, and stop the gradients of what it freezes; the last act of a constructor."""
        if frozen_stages not in range(-1, built + 1):
            raise ValueError(
                f'{type(self).__name__}: frozen_stages={frozen_stages!r}; expected -1 to {built}, the layers that are '
                f'built'
            )
        self.frozen_stages = frozen_stages
        for module in self._frozen_modules():
            module.requires_grad_(False)

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        norms = [norm for layer, norm in self._output_norms() if layer < self.frozen_stages]
        return [self.patch_embed, *self.layers[: self.frozen_stages], *norms]

    def _output_norms(self) -> list[tuple[int, nn.Module]]:
        """The norms of the outputs, each with the number of its layer."""
        raise NotImplementedError

    def train(self, mode: bool = True):
        """Set the mode; frozen layers stay in evaluation (no drop path). Returns self."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self
