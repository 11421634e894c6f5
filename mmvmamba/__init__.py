"""Visual state-space backbones for OpenMMLab's detection and segmentation toolboxes."""

__version__ = '0.1.0'
