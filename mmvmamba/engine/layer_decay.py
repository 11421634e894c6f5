"""Learning rates that fall from the heads to the first layer of a backbone."""

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmvmamba.models import FastVim, VMamba
from mmvmamba.registry import OPTIM_WRAPPER_CONSTRUCTORS

_RATE = 'layer_decay_rate'


def _layer_of_fastvim(backbone: FastVim, name: str) -> int:
    parts = name.split('.')
    if parts[0] == 'layers':
        return int(parts[1]) + 1
    return 0 if parts[0] in ('pos_embed', 'patch_embed') else len(backbone.layers) + 1


def _layer_of_vmamba(backbone: VMamba, name: str) -> int:
    return backbone.get_layer_depth(name)[0]


_LAYER_OF = {FastVim: _layer_of_fastvim, VMamba: _layer_of_vmamba}


def layer_of(backbone: nn.Module, name: str) -> int:
    """Number the layer of a backbone's parameter: 0 for the stem, then block by block; output norms come last.

    Raises:
        TypeError: a backbone whose layers are unknown.
    """
    for kind, count in _LAYER_OF.items():
        if isinstance(backbone, kind):
            return count(backbone, name)
    known = [kind.__name__ for kind in _LAYER_OF]
    raise TypeError(f'layer decay: the layers of {type(backbone).__name__} are unknown; expected one of {known}')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with learning rates multiplied by `rate ** (layers between a parameter and the heads)`.

    `paramwise_cfg` takes `layer_decay_rate` in (0, 1] beside everything that mmengine's constructor knows.

    Raises:
        ValueError: no such rate, or a model without a backbone.
        TypeError: a backbone whose layers are unknown.

    Source: Bao et al., "BEiT", arXiv 2106.08254, appendix; Li et al., arXiv 2203.16527 (detection).
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        rate = self.paramwise_cfg.get(_RATE)
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ValueError(
                f'{type(self).__name__}: paramwise_cfg.{_RATE}={rate!r}; expected a number above 0 and up to 1'
            )

    def add_params(self, params, module, prefix='', **options) -> None:
        """Let mmengine fill the groups, one parameter each, then scale their learning rates."""
        super().add_params(params, module, prefix=prefix, **options)
        if prefix:  # mmengine recurses through this method; the root call has them all
            return
        backbone = getattr(module, 'backbone', None)
        if backbone is None:
            raise ValueError(f'{type(self).__name__}: {type(module).__name__} has no backbone')
        names = {id(parameter): name for name, parameter in backbone.named_parameters()}
        last = layer_of(backbone, '')
        for group in params:
            name = names.get(id(group['params'][0]))
            if name is not None:
                scale = self.paramwise_cfg[_RATE] ** (last - layer_of(backbone, name))
                group['lr'] = group.get('lr', self.base_lr) * scale
