"""Importing this module registers every model that needs no toolbox: the name for `custom_imports`."""

from mmvmamba.registry import import_on_request

from .backbones.channel_vim import ChannelVim, FastChannelVim
from .backbones.fastvim import FastVim
from .backbones.fastvim_mae import FastMaskVim
from .backbones.vmamba import VMamba
from .necks.mae_decoder import MaskedVimDecoder
from .necks.simple_fpn import LN2d, SimpleFPN

__all__ = ['ChannelVim', 'FastChannelVim', 'FastMaskVim', 'FastVim', 'LN2d', 'MaskedVimDecoder', 'SimpleFPN', 'VMamba']
__getattr__ = import_on_request(__name__, {'InstanceTTAModel': ('test_time_augs', 'mmdet')})
