"""Test-time augmentation for mmdet; needs mmdet, so `mmvmamba.models` imports it on request only."""

from .instance_tta import InstanceTTAModel

__all__ = ['InstanceTTAModel']
