"""Test-time augmentation for mmdet; needs mmdet, so `mmvmamba.models` does not import it."""

from .instance_tta import InstanceTTAModel

__all__ = ['InstanceTTAModel']
