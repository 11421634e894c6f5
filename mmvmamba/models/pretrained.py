"""What our backbones share: `init_cfg=dict(type='Pretrained', checkpoint=...)` that loads strictly."""

from mmengine.model import BaseModule

from mmvmamba import checkpoints


class PretrainedBackbone(BaseModule):
    """A backbone whose pretrained weights come through `mmvmamba.checkpoints.load`.

    mmengine's own loader takes what fits and goes on without a word about the rest.

    Attributes:
        family: which of the translations of `checkpoints` its published names need.
    """

    family: str

    def init_weights(self) -> None:
        """Load the checkpoint of `init_cfg`, once; parameters are otherwise as the constructor initialised them.

        Raises:
            FileNotFoundError, CheckpointError: see `checkpoints.load`.
        """
        if (self.init_cfg or {}).get('type') != 'Pretrained':
            super().init_weights()
        elif not self.is_init:
            checkpoints.load(self.init_cfg['checkpoint'], self)
            self.is_init = True
