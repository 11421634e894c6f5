"""Importing this module registers every model: the name for `custom_imports`."""

from .backbones.fastvim import FastVim
from .backbones.vmamba import VMamba
from .necks.simple_fpn import LN2d, SimpleFPN

__all__ = ['FastVim', 'LN2d', 'SimpleFPN', 'VMamba']
