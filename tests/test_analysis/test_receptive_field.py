"""Effective receptive fields of networks whose fields are known."""

import pytest
import torch
from torch import nn

from mmvmamba.analysis import drawing, receptive_field
from mmvmamba.analysis.benchmark import resnet50
from mmvmamba.models import VMamba


class Convolution(nn.Conv2d):
    def forward(self, x):
        return (super().forward(x),)


def test_a_convolution_sees_its_kernel():
    field = receptive_field.effective_receptive_field(Convolution(3, 4, 3, padding=1), [torch.randn(1, 3, 9, 11)] * 2)
    seen = torch.from_numpy(field) > 0
    assert seen[3:6, 4:7].all()
    assert seen.sum() == 9
    assert field.max() == 1


def test_vmamba_sees_the_whole_image_and_resnet_does_not():
    torch.manual_seed(0)
    image = torch.randn(1, 3, 512, 512)
    ours = receptive_field.effective_receptive_field(VMamba(depths=(1, 1, 1, 1), embed_dims=32), [image])
    theirs = receptive_field.effective_receptive_field(resnet50(), [image])
    assert receptive_field.covered(ours, 0) == 1
    assert receptive_field.covered(theirs, 0) < 0.9, "ResNet-50's field has 483 pixels a side, 0.89 of the image"


def test_no_images():
    with pytest.raises(ValueError, match='images is empty'):
        receptive_field.effective_receptive_field(nn.Identity(), [])


def test_pictures_are_written(tmp_path):
    fields = {'a': torch.rand(8, 8).numpy(), 'b': torch.zeros(8, 8).numpy()}
    drawing.receptive_fields(fields, tmp_path / 'sub/erf.png')
    assert (tmp_path / 'sub/erf.png').stat().st_size > 5000
