"""What our backbones share: weights that are loaded strictly, and stages that are frozen."""

from mmengine.logging import print_log
from mmengine.model import BaseModule, initialize
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from mmvmamba import checkpoints
from mmvmamba.registry import is_type

_PRETRAINED_KEYS = ('checkpoint', 'container', 'prefix', 'trust')


class BaseBackbone(BaseModule):
    """A backbone with `init_cfg=dict(type='Pretrained', checkpoint=...)` and `frozen_stages`.

    mmengine's own loaders take what fits and go on without a word about the rest. Here `init_cfg` is read by
    `mmvmamba.checkpoints.load`, which takes its keys `container`, `prefix` and `trust`. On every other road, that of
    mmengine's non-strict loader included, the backbone translates its part of a state dict and refuses one that is not
    exactly its own.

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
            FileNotFoundError, CheckpointError: see `checkpoints.load`; also for a key that is not understood.
        """
        entries = self.init_cfg if isinstance(self.init_cfg, (list, tuple)) else [self.init_cfg or {}]
        if not all(isinstance(entry, dict) for entry in entries):
            raise TypeError(
                f'{type(self).__name__}: init_cfg={self.init_cfg!r}; expected a dict such as '
                f"dict(type='Pretrained', checkpoint='file.pth'), or a list of dicts"
            )
        pretrained = [entry for entry in entries if is_type(entry.get('type'), 'Pretrained', WEIGHT_INITIALIZERS)]
        if not pretrained:
            super().init_weights()
        elif not self.is_init:
            options = [self._options(entry) for entry in pretrained]
            initialize(self, [entry for entry in entries if entry not in pretrained])
            for entry in options:
                report = checkpoints.load(entry.pop('checkpoint'), self, **entry)
                print_log(f'{type(self).__name__}: {report}', logger='current')
            self.is_init = True

    def _options(self, entry: dict) -> dict:
        """The arguments of `checkpoints.load` in an `init_cfg` of type Pretrained."""
        options = {key: value for key, value in entry.items() if key not in ('type', '_scope_')}
        if options.get('map_location') == 'cpu':  # where files are read to anyway
            del options['map_location']
        unknown = [key for key in options if key not in _PRETRAINED_KEYS]
        if unknown or not options.get('checkpoint'):
            raise checkpoints.CheckpointError(
                f'{type(self).__name__}: init_cfg={entry!r} '
                + (f'has keys that are not understood: {unknown}' if unknown else 'names no checkpoint')
                + f'; expected type, {", ".join(_PRETRAINED_KEYS)}'
            )
        return options

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        """What every loader of PyTorch and mmengine calls: translate this backbone's names, refuse what does not fit.

        Raises:
            CheckpointError: see `checkpoints.load`; also if nothing is for this backbone and something for nobody.
        """
        if not any(hasattr(module, '_fsdp_wrapped_module') for module in self.modules()):  # their shapes are of shards
            where = f'the part {prefix!r} of the state dict' if prefix else 'the state dict'
            own = {name: value for name, value in state_dict.items() if name.startswith(prefix)}
            if not own and unexpected_keys:
                raise checkpoints.CheckpointError(
                    f'the state dict has nothing for {type(self).__name__} under {prefix!r}, and nobody takes its '
                    f'{unexpected_keys[:3]}. Remove what stands before the names, if they differ in that. Weights of a '
                    f'backbone alone, a classifier say, are loaded by its init_cfg or by load_from of tools/train.py'
                )
            if own:
                stripped = {name.removeprefix(prefix): value for name, value in own.items()}
                fitted = checkpoints.fit_part(stripped, self, where)
                for name in own:
                    del state_dict[name]
                state_dict.update((prefix + name, self._adapted(name, value)) for name, value in fitted.items())
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _checkpoint_filter(self, state_dict, prefix, *_) -> None:
        """What mmpretrain's `ImageClassifier` calls with every state dict: published names to that classifier's."""
        if not prefix:
            translated, averaged = checkpoints.as_classifier(state_dict)
            if averaged:
                print_log(f'not used: {len(averaged)} averaged tensors of the same file', logger='current')
            state_dict.clear()
            state_dict.update(translated)

    def _adapted(self, name: str, value):
        """A parameter of the right name in this model's shape, if there is a way to it."""
        return value

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
