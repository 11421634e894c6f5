"""Backbones as small as those that golden files were measured on, and the comparison with what the files say."""

from collections.abc import Collection
from pathlib import Path

import torch
from mmengine.registry import DefaultScope
from mmvmamba.kernels.testing import assert_close, load_golden
from torch import nn

from mmvmamba import checkpoints
from mmvmamba.models import FastVim, VMamba

ROUTES = {'v05_noz': 'cross', 'v051d_noz': 'unidi', 'v052d_noz': 'bidi', 'v052dc_noz': 'cascade', 'v0': 'cross'}
VMAMBAS = ('s1', 's1_channels_last', 's2', 'v0', 'unidi', 'bidi', 'cascade')
FASTVIMS = ('fastvim', 'fastvim_max_pool', 'fastvim_no_rotate', 'vim')


def vmamba(theirs: dict, **options) -> VMamba:
    """The model that the published code builds from the arguments `theirs`."""
    return VMamba(
        'tiny_v0' if theirs['forward_type'] == 'v0' else 'tiny_s1l8',
        embed_dims=theirs['dims'],
        depths=theirs['depths'],
        ssm_ratio=theirs['ssm_ratio'],
        routes=ROUTES[theirs['forward_type']],
        **options,
    )


def fastvim(theirs: dict, **options) -> FastVim:
    """See `vmamba`."""
    return FastVim(
        img_size=theirs['img_size'],
        embed_dims=theirs['embed_dim'],
        depth=theirs['depth'],
        out_indices=theirs['out_indices'],
        pool=theirs.get('collapse_method', 'mean') if 'rotate_every_block' in theirs else None,
        rotate=theirs.get('rotate_every_block', True),
        norm_after_scan=theirs['use_norm_after_ssm'],
        **options,
    )


def parameters_of(golden: dict) -> dict[str, torch.Tensor]:
    """The state dict that a golden file was measured with."""
    return {name.removeprefix('param.'): value for name, value in golden.items() if name.startswith('param.')}


def check_backbone(path: Path, backend: str, tolerance: float, gradients: float, device: str = 'cpu') -> None:
    """Every output and, where the file has them, every gradient.

    Args:
        path: the golden file.
        backend: of the scans.
        tolerance: of every number of an output.
        gradients: tolerance of a gradient, relative by norm.
        device: where to run.
    """
    golden, metadata = load_golden(path)
    golden = {name: value.to(device) for name, value in golden.items()}
    build = vmamba if path.stem.startswith('vmamba') else fastvim
    model = build(metadata['official_kwargs'], backend=backend).eval().to(device)
    model.load_state_dict(parameters_of(golden))
    image = golden['input'].requires_grad_('grad.input' in golden)
    outs = model(image)
    assert len(outs) == sum(name.startswith('out.') for name in golden)
    for i, out in enumerate(outs):
        torch.testing.assert_close(out, golden[f'out.{i}'], rtol=0, atol=tolerance)
    if 'grad.input' not in golden:
        return
    (sum((out * golden[f'cotangent.{i}']).sum() for i, out in enumerate(outs)) / len(outs)).backward()
    assert_close('input', image.grad, golden['grad.input'], gradients)
    for name, parameter in model.named_parameters():
        assert_close(name, parameter.grad, golden[f'grad.{name}'], gradients)


CLASSIFIERS = ('cls_vmamba', 'cls_fastvim', 'cls_fastvim_scaled', 'cls_vim')


def classifier(theirs: dict, **backbone) -> nn.Module:
    """The whole classifier that the published code builds from the arguments `theirs`, by mmpretrain.

    Args:
        theirs: of the published constructor.
        backbone: further arguments of ours, or arguments in their place.
    """
    from mmpretrain.registry import MODELS

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(classifier_config(theirs, **backbone))


def classifier_config(theirs: dict, **backbone) -> dict:
    """See `classifier`."""
    if 'depths' in theirs:
        own = dict(type='mmvmamba.VMamba', out_indices=(3,), embed_dims=theirs['dims'], depths=theirs['depths'])
        width = theirs['dims'] * 8
    else:
        token = theirs.get('if_cls_token', False)
        own = dict(
            type='mmvmamba.FastVim',
            out_type='cls_token' if token else 'featmap',
            pool=None if token else theirs.get('collapse_method', 'mean'),
            pool_scale=theirs.get('scaling_factor', 1),
            **{key: theirs[key] for key in ('img_size', 'patch_size') if key in theirs},
            embed_dims=theirs['embed_dim'],
            depth=theirs['depth'],
        )
        width = theirs['embed_dim']
    return dict(
        type='ImageClassifier',
        backbone=own | backbone,
        neck=None if own.get('out_type') == 'cls_token' else dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=theirs['num_classes'], in_channels=width),
    )


def published_name(name: str, published: Collection[str]) -> str:
    """Which of the `published` names a parameter of `classifier` has."""
    for ours, theirs in (('head.fc.', 'classifier.head.'), ('head.fc.', 'head.'), ('outnorm3.', 'classifier.norm.')):
        renamed = name.removeprefix('backbone.').replace(ours, theirs)
        if renamed in published:
            return renamed
    raise AssertionError(f'{name} is none of {sorted(published)}')


def check_classifier(path: Path, backend: str, tolerance: float, gradients: float, device: str = 'cpu') -> None:
    """Logits and every gradient of a whole classifier. See `check_backbone`."""
    golden, metadata = load_golden(path)
    golden = {name: value.to(device) for name, value in golden.items()}
    model = classifier(metadata['official_kwargs'], backend=backend).eval().to(device)
    published = parameters_of(golden)
    report = checkpoints.load(published, model)
    assert report.dropped == report.fresh == []
    image = golden['input'].requires_grad_()
    out = model(image)
    torch.testing.assert_close(out, golden['out.0'], rtol=0, atol=tolerance)
    (out * golden['cotangent.0']).sum().backward()
    assert_close('input', image.grad, golden['grad.input'], gradients)
    for name, parameter in model.named_parameters():
        assert_close(name, parameter.grad, golden[f'grad.{published_name(name, published)}'], gradients)
