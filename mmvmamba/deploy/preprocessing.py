"""What toolboxes do to an image before a network."""

import torch
from torch import nn


class Normalised(nn.Module):
    """What toolboxes' data preprocessors do to an image, from RGB in 0..255."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        preprocessor = model.data_preprocessor
        # mmdet and mmseg read BGR and swap if told to; mmpretrain names it to_rgb
        self.swap = not (getattr(preprocessor, '_channel_conversion', False) or getattr(preprocessor, 'to_rgb', False))
        shape = (1, 3, 1, 1)
        normalises = getattr(preprocessor, '_enable_normalize', False)
        mean = preprocessor.mean if normalises else torch.zeros(shape)
        std = preprocessor.std if normalises else torch.ones(shape)
        self.register_buffer('mean', mean.detach().clone().view(shape))
        self.register_buffer('std', std.detach().clone().view(shape))

    def normalised(self, image):
        return ((image.flip(1) if self.swap else image) - self.mean) / self.std
