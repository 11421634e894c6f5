"""Whole classifiers by mmpretrain around our backbones, against the published ones."""

import pytest
import torch
from golden_runs import CLASSIFIERS, check_classifier, classifier, published_name, published_spec

from mmvmamba.models import FastVim, VMamba
from mmvmamba.models.backbones.vmamba import ARCHS, MAMBA2_ARCHS

pytest.importorskip('mmpretrain')

# of the files of names and shapes: ours in their words
VMAMBAS = {f'vmamba_{arch[0]}_{arch.partition("_")[2]}': arch for arch in ARCHS | MAMBA2_ARCHS}
FASTVIMS = {
    'fastvim_t': 'tiny',
    'fastvim_s': 'small',
    'fastvim_b': 'base',
    'fastvim_l': 'large',
    'fastvim_h': 'huge',
    'fastvim_h_448': 'huge',
    'vim_b': 'base',
    'vim_l': 'large',
}


@pytest.mark.parametrize('backend', ['auto', 'torch', 'reference'])
@pytest.mark.parametrize('name', CLASSIFIERS)
def test_golden(name, backend, data_dir):
    # 'auto' may be a backend that sums in another order
    gradients = 2e-5 if backend == 'auto' else 1e-5
    check_classifier(data_dir / f'{name}.safetensors', backend, 2e-6, gradients)


def test_golden_with_mamba2_blocks(data_dir):
    check_classifier(data_dir / 'cls_vmamba_m0.safetensors', 'auto', 2e-6, 1e-5)


@pytest.mark.parametrize('name', VMAMBAS | FASTVIMS)
def test_names_shapes_and_counts_are_the_published_ones(name):
    published = (published_spec('classifier') | published_spec('vmamba'))[name]
    theirs = {key: shape for key, shape in published['state_dict'].items() if not key.startswith('outnorm')}
    if 'classifier_only' in published:  # which is a list of names
        width = 8 * published['official_kwargs']['dims']
        shapes = {'norm.weight': [width], 'norm.bias': [width], 'head.weight': [1000, width], 'head.bias': [1000]}
        theirs |= {key: shapes[key.removeprefix('classifier.')] for key in published['classifier_only']}
    with torch.device('meta'):
        model = classifier(published['official_kwargs'] | dict(num_classes=1000), arch=(VMAMBAS | FASTVIMS)[name])
    assert {published_name(key, theirs): list(value.shape) for key, value in model.state_dict().items()} == theirs
    count = published.get('classifier_params') or published['params']
    assert sum(p.numel() for p in model.parameters()) == count


def test_outputs_of_fastvim():
    """What classifiers take: the sum of all blocks, normalised; the last block's output dropped with the full rate."""
    tiny = dict(embed_dims=16, depth=3, d_state=4, drop_path_rate=0.3)
    model = FastVim(out_type='featmap', **tiny)
    assert isinstance(model.norm_f, torch.nn.RMSNorm)
    assert model.norm_f.eps == model.layers[0].norm.eps == 1e-5
    assert model.drop_path.rate == pytest.approx(0.3)
    assert [block.drop_path.rate for block in model.layers] == pytest.approx([0.0, 0.0, 0.15])
    (out,) = model(torch.randn(2, 3, 40, 64))
    assert out.shape == (2, 16, 3, 4)
    assert out.is_contiguous()
    (out,) = FastVim(out_type='cls_token', pool=None, **tiny)(torch.randn(2, 3, 40, 64))
    assert out.shape == (2, 16)


def test_column_path_of_vim_is_the_row_path_of_the_transposed_image():
    tiny = dict(embed_dims=16, depth=2, d_state=4, out_type='cls_token', pool=None, img_size=64)
    columns, rows = FastVim(scan_path='column', **tiny).eval(), FastVim(**tiny).eval()
    state = columns.state_dict()
    state['patch_embed.proj.weight'] = state['patch_embed.proj.weight'].transpose(2, 3)
    patches = torch.cat([state['pos_embed'][:, :8], state['pos_embed'][:, 9:]], dim=1).unflatten(1, (4, 4))
    patches = patches.transpose(1, 2).flatten(1, 2)
    state['pos_embed'] = torch.cat([patches[:, :8], state['pos_embed'][:, 8:9], patches[:, 8:]], dim=1)
    rows.load_state_dict(state)
    image = torch.randn(1, 3, 48, 80)
    torch.testing.assert_close(columns(image), rows(image.transpose(2, 3)), rtol=0, atol=1e-5)


@pytest.mark.parametrize('out_type', ['featmap', 'cls_token'])
def test_every_parameter_of_a_classifiers_backbone_gets_a_gradient(out_type):
    pool = 'mean' if out_type == 'featmap' else None
    model = FastVim(out_type=out_type, pool=pool, embed_dims=16, depth=3, d_state=4)
    (out,) = model(torch.randn(2, 3, 48, 32))
    (out * torch.randn_like(out)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    frozen = FastVim(out_type=out_type, pool=pool, embed_dims=16, depth=3, d_state=4, frozen_stages=2)
    trained = {name.partition('.')[0] for name, p in frozen.named_parameters() if p.requires_grad}
    assert trained == {'layers', 'norm_f'}


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(out_type='map'), "out_type='map' is unknown; expected one of"),
        (dict(out_type='cls_token'), "pool='mean' has no class token; out_type='cls_token' expects pool=None"),
        (dict(out_type='featmap', out_indices=(5,)), r'out_indices=\(5,\); expected None or \(23,\), as out_type'),
    ],
)
def test_bad_outputs(arguments, words):
    with pytest.raises(ValueError, match=words):
        FastVim(**arguments)


def scales(model, rate=0.5):
    """What mmpretrain's layer-wise decay multiplies each parameter's learning rate by."""
    depths = {name: model.get_layer_depth(name) for name, _ in model.named_parameters()}
    return {name: rate ** (layers - layer - 1) for name, (layer, layers) in depths.items()}


def test_paired_layer_decay_of_fastvim():
    theirs = dict(embed_dim=16, depth=24, num_classes=2, if_cls_token=True)
    found = scales(classifier(theirs, d_state=4))
    for name in ('pos_embed', 'cls_token', 'patch_embed.proj.bias'):
        assert found[f'backbone.{name}'] == 0.5**13
    blocks = [found[f'backbone.layers.{i}.norm.weight'] for i in range(24)]
    assert blocks == [0.5**e for e in range(12, 0, -1) for _ in range(2)]
    assert found['backbone.norm_f.weight'] == found['head.fc.weight'] == 1


def test_layer_decay_of_vmamba():
    theirs = dict(dims=8, depths=(1, 1, 2, 1), num_classes=2, forward_type='')
    found = scales(classifier(theirs))
    assert found['backbone.patch_embed.0.weight'] == 0.5**6
    assert found['backbone.layers.0.blocks.0.op.Ds'] == 0.5**5
    assert found['backbone.layers.0.downsample.1.weight'] == found['backbone.layers.1.blocks.0.op.Ds'] == 0.5**4
    assert found['backbone.layers.2.blocks.1.op.Ds'] == 0.5**2
    assert found['backbone.layers.3.blocks.0.op.Ds'] == 0.5
    assert found['backbone.outnorm3.weight'] == found['head.fc.bias'] == 1
    assert VMamba().get_layer_depth('patch_embed.0.weight') == (0, 16)
