"""Backbones as small as those that golden files were measured on, and the comparison with what the files say."""

import gzip
import json
from collections.abc import Collection
from pathlib import Path

import torch
from mmengine.registry import DefaultScope
from mmvmamba.kernels.testing import assert_close, load_golden
from torch import nn

from mmvmamba import checkpoints
from mmvmamba.models import ChannelVim, FastChannelVim, FastVim, VMamba

ROUTES = {'v05_noz': 'cross', 'v051d_noz': 'unidi', 'v052d_noz': 'bidi', 'v052dc_noz': 'cascade', 'v0': 'cross'}
VMAMBAS = ('s1', 's2', 'v0', 'unidi', 'bidi', 'cascade')
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


def published_spec(name: str) -> dict:
    """Names and shapes of the published models: `vmamba`, `fastvim` (dense) or `classifier` (all others)."""
    with gzip.open(Path(__file__).parent / f'data/{name}_spec.json.gz') as file:
        return json.load(file)


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
        check_gradient(name, parameter.grad, golden, gradients)


def check_gradient(name: str, gradient: torch.Tensor, golden: dict, tolerance: float) -> None:
    """Compare a parameter's gradient.

    Of the largest weights some files have two products with cosines, over each row and over each column, alone.
    """
    if f'grad.{name}' in golden:
        assert_close(name, gradient, golden[f'grad.{name}'], tolerance)
        return
    matrix = gradient.double().flatten(1)
    down, across = (torch.arange(size, dtype=torch.float64, device=matrix.device).cos() for size in matrix.shape)
    assert_close(f'{name}, rows', matrix @ across, golden[f'rows.grad.{name}'].double(), tolerance)
    assert_close(f'{name}, columns', down @ matrix, golden[f'columns.grad.{name}'].double(), tolerance)


CHANNEL_VIMS = ('channel_fastvim', 'channel_fastvim_subset', 'channel_vim')


def channel_vim(theirs: dict, **options) -> nn.Module:
    """See `vmamba`."""
    cls = ChannelVim if theirs.get('if_cls_token') else FastChannelVim
    sizes = dict(embed_dims=theirs['embed_dim'], depth=theirs['depth'], in_channels=theirs['channels'])
    return cls(img_size=theirs['img_size'], **sizes, **options)


def check_channel_vim(path: Path, backend: str, logits: float, gradients: float, device: str = 'cpu') -> None:
    """Logits of a network for images of many channels, with a head, and every gradient.

    Args:
        path: the golden file.
        backend: of the scans.
        logits: tolerance of every number.
        gradients: tolerance of a gradient, relative by norm.
        device: where to run.
    """
    golden, metadata = load_golden(path)
    golden = {name: value.to(device) for name, value in golden.items()}
    parameters = parameters_of(golden)
    head = nn.Linear(*reversed(parameters['head.weight'].shape), device=device)
    head.load_state_dict({'weight': parameters.pop('head.weight'), 'bias': parameters.pop('head.bias')})
    model = channel_vim(metadata['official_kwargs'], backend=backend).eval().to(device)
    model.load_state_dict(parameters)
    image = golden['input'].requires_grad_()
    channels = golden.get('channels')
    out = head(model(image if channels is None else image[:, channels], channels)[0])
    torch.testing.assert_close(out, golden['out.0'], rtol=0, atol=logits)
    (out * golden['cotangent.0']).sum().backward()
    assert_close('input', image.grad, golden['grad.input'], gradients)
    for label, parameter in [*model.named_parameters(), *head.named_parameters('head')]:
        check_gradient(label, parameter.grad, golden, gradients)


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
        if theirs['forward_type'].startswith('m0'):
            own.update(arch='tiny_m2', d_state=theirs['ssm_d_state'])
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
    raise AssertionError(f'{name} has no published name')


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
        check_gradient(published_name(name, published), parameter.grad, golden, gradients)
