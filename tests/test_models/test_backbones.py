"""What every backbone promises."""

import subprocess
import sys

import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS

from mmvmamba.models import FastVim, VMamba
from mmvmamba.registry import MODELS

TINY = {
    VMamba: dict(embed_dims=8, depths=(1, 1, 2, 1), drop_path_rate=0.0),
    FastVim: dict(embed_dims=16, depth=3, d_state=4, out_indices=(0, 2), drop_path_rate=0.0),
}
SMALLEST = {VMamba: 4, FastVim: 16}

pytestmark = pytest.mark.parametrize('backbone', TINY, ids=lambda backbone: backbone.__name__)


def test_type_names(backbone):
    name = backbone.__name__
    for registry, known_as in ((ROOT_MODELS, name), (ROOT_MODELS, f'mmvmamba.{name}'), (MODELS, name)):
        assert type(registry.build(dict(type=known_as, **TINY[backbone]))) is backbone


def test_plain_module_without_toolboxes(backbone):
    """Neither mmcv nor a toolbox is needed: they are blocked from import in a fresh interpreter."""
    code = (
        'import sys\n'
        "for name in ('mmcv', 'mmdet', 'mmseg', 'numba', 'triton'): sys.modules[name] = None\n"
        'import torch\n'
        f'from mmvmamba.models import {backbone.__name__}\n'
        f'outs = {backbone.__name__}(**{TINY[backbone]})(torch.zeros(1, 3, 32, 32))\n'
        'assert all(out.isfinite().all() for out in outs)\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_train_and_eval_return_the_model(backbone):
    model = backbone(**TINY[backbone])
    assert model.train() is model
    assert model.eval() is model


def test_maps_are_contiguous(backbone):
    """mmcv's RoIAlign reads memory as channels first whatever the strides say: other maps train nothing, silently."""
    for out in backbone(**TINY[backbone])(torch.zeros(1, 3, 32, 48)):
        assert out.is_contiguous()


def test_checkpointing_changes_nothing(backbone):
    plain, checkpointed = backbone(**TINY[backbone]), backbone(with_cp=True, **TINY[backbone])
    checkpointed.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 32, 40)
    for model in (plain, checkpointed):
        sum(out.square().sum() for out in model(image)).backward()
    for (name, expected), found in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad), name


@pytest.mark.parametrize(
    ('shape', 'dtype', 'error', 'words'),
    [
        ((1, 4, 32, 32), torch.float32, ValueError, r'shape \(1, 4, 32, 32\); expected \(B, 3, H, W\)'),
        ((3, 32, 32), torch.float32, ValueError, r'shape \(3, 32, 32\)'),
        ((1, 3, 3, 32), torch.float32, ValueError, '3 x 32 pixels is too small; expected at least {0} x {0}'),
        ((1, 3, 32, 32), torch.uint8, TypeError, 'dtype torch.uint8'),
    ],
)
def test_bad_images(backbone, shape, dtype, error, words):
    with pytest.raises(error, match=words.format(SMALLEST[backbone])):
        backbone(**TINY[backbone])(torch.zeros(shape, dtype=dtype))
