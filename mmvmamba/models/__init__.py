"""Importing this module registers every model: the name for `custom_imports`."""

from .backbones.vmamba import VMamba

__all__ = ['VMamba']
