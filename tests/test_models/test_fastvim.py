"""The FastVim backbone against golden tensors of the published model, and what it promises beyond them."""

import copy
import json

import pytest
import torch
from golden_runs import FASTVIMS, check_backbone
from mmvmamba.kernels.pooled_scan import reference
from mmvmamba.kernels.testing import assert_close
from torch import nn
from torch.nn import functional as F

from mmvmamba.checkpoints import CheckpointError
from mmvmamba.models import FastVim
from mmvmamba.models.backbones.fastvim import ARCHS
from mmvmamba.models.layers.positions import resize_positions

TINY = dict(embed_dims=16, depth=3, d_state=4, out_indices=(0, 2))
PUBLISHED = dict(fastvim_t='tiny', fastvim_s='small', fastvim_b='base', vim_s='small')


@pytest.mark.parametrize('backend', ['auto', 'torch', 'reference'])
@pytest.mark.parametrize('name', FASTVIMS)
def test_golden(name, backend, data_dir):
    check_backbone(data_dir / f'{name}.safetensors', backend, 1e-5, 1e-5)


@pytest.mark.parametrize('name', PUBLISHED)
def test_names_shapes_and_counts_are_the_published_ones(name, data_dir):
    published = json.loads((data_dir / 'fastvim_spec.json').read_text())[name]
    with torch.device('meta'):
        model = FastVim(PUBLISHED[name], pool=None if name.startswith('vim') else 'mean')
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == published['state_dict']
    assert sum(p.numel() for p in model.parameters()) == published['backbone_params']


@pytest.mark.parametrize(
    ('arch', 'channels', 'depth', 'patch'),
    [
        ('tiny', 192, 24, 16),
        ('small', 384, 24, 16),
        ('base', 768, 24, 16),
        ('large', 1024, 48, 16),
        ('huge', 1280, 64, 14),
    ],
)
def test_architectures(arch, channels, depth, patch):
    with torch.device('meta'):
        model = FastVim(arch, out_indices=(0,))
    assert set(ARCHS) == {'tiny', 'small', 'base', 'large', 'huge'}
    assert (model.depth, len(model.layers)) == (depth, 1)
    assert model.patch_embed.proj.weight.shape == (channels, 3, patch, patch)
    assert model.layers[0].mixer.A_log.shape == (2 * channels, 16)
    assert model.layers[0].mixer.dt_proj.weight.shape == (2 * channels, channels // 16)


@pytest.mark.parametrize('pool', ['mean', 'max', None])
@pytest.mark.parametrize('rotate', [True, False])
def test_column_path_is_the_row_path_of_the_transposed_image(rotate, pool):
    fields = dict(TINY, img_size=(64, 96), rotate=rotate, pool=pool)
    columns = FastVim(scan_path='column', **fields).eval()
    rows = FastVim(**dict(fields, img_size=(96, 64))).eval()
    transposed = {
        name: value.transpose(2, 3)
        if name == 'patch_embed.proj.weight'
        else value.unflatten(1, (4, 6)).transpose(1, 2).flatten(1, 2)
        if name == 'pos_embed'
        else value
        for name, value in columns.state_dict().items()
    }
    rows.load_state_dict(transposed)
    for size in ((64, 96), (50, 130)):
        image = torch.randn(2, 3, *size)
        row_outs = FastVim(**fields).eval()(image)
        for out, expected, other in zip(columns(image), rows(image.transpose(2, 3)), row_outs, strict=True):
            torch.testing.assert_close(out, expected.transpose(2, 3), rtol=0, atol=1e-5)
            assert not torch.allclose(out, other, atol=1e-2)


def test_rotation_alternates_the_axis_except_in_vim():
    def axes(**arguments):
        return [block.mixer.axis for block in FastVim(**TINY, **arguments).layers]

    assert axes() == ['row', 'column', 'row']
    assert axes(scan_path='column') == ['column', 'row', 'column']
    assert axes(rotate=False) == ['row', 'row', 'row']
    assert axes(pool=None) == ['row', 'row', 'row']


def test_scan_length_is_a_side_of_the_grid(monkeypatch):
    """The paper's claim: rows and columns in turn, H or W steps in either direction, never H*W."""
    lengths = []
    original = reference.selective_scan

    def counting(u, *arguments):
        lengths.append(u.shape[2])
        return original(u, *arguments)

    monkeypatch.setattr(reference, 'selective_scan', counting)
    image = torch.randn(1, 3, 48, 112)  # a grid of 3 x 7
    FastVim(backend='reference', **TINY)(image)
    assert lengths == [3, 3, 7, 7, 3, 3]
    lengths.clear()
    FastVim(backend='reference', pool=None, **TINY)(image)
    assert lengths == [21] * 6


@pytest.mark.parametrize('training', [True, False], ids=['training', 'evaluation'])
def test_any_sizes_in_turn_through_one_instance(training):
    model = FastVim(**TINY).train(training)
    for size in ((640, 1184), (224, 224), (333, 517), (16, 16), (17, 400), (640, 1184)):
        outs = model(torch.randn(1, 3, *size))
        height, width = ((side + 15) // 16 for side in size)
        for out in outs:
            assert out.shape == (1, 16, height, width)
            assert out.isfinite().all()
        if training:
            sum(out.square().mean() for out in outs).backward()
            assert model.pos_embed.grad.isfinite().all()


@pytest.mark.parametrize('grad', [True, False])
def test_construction_size_does_not_matter(grad):
    """The same weights give the same result for a grid, whether it is the one the model was built for or not."""
    small = FastVim(img_size=64, **TINY).eval()
    big = FastVim(img_size=(96, 144), **TINY).eval()
    big.load_state_dict(small.state_dict())
    image = torch.randn(2, 3, 96, 144)
    with torch.set_grad_enabled(grad):
        for out, expected in zip(small(image), big(image), strict=True):
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


def test_position_embedding_is_resized_bicubically():
    embedding = torch.randn(1, 24, 16, dtype=torch.float64, requires_grad=True)
    for grid in ((5, 9), (3, 4), (1, 20), (12, 1), (4, 6)):
        maps = embedding.view(1, 4, 6, 16).permute(0, 3, 1, 2)
        expected = F.interpolate(maps, size=grid, mode='bicubic', align_corners=False).permute(0, 2, 3, 1)
        found = resize_positions(embedding, (4, 6), grid)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        cotangent = torch.randn_like(found)
        grads = [torch.autograd.grad(maps, embedding, cotangent)[0] for maps in (found, expected)]
        torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_position_embedding_keeps_its_numbers_on_its_own_grid(dtype):
    embedding = torch.randn(1, 24, 16).to(dtype)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(resize_positions(embedding, (4, 6), (4, 6)), embedding.unflatten(1, (4, 6)))


def test_padding_is_zeros_at_the_bottom_and_right():
    model = FastVim(**TINY).eval()
    image = torch.randn(1, 3, 20, 33)
    padded = torch.zeros(1, 3, 32, 48)
    padded[:, :, :20, :33] = image
    for out, expected in zip(model(image), model(padded), strict=True):
        assert torch.equal(out, expected)


@pytest.mark.parametrize('pool', ['mean', 'max', None])
@pytest.mark.parametrize('out_indices', [(0,), (1,), (2,), (0, 2), (0, 1, 2), 2])
def test_every_parameter_gets_a_gradient(out_indices, pool):
    model = FastVim(**dict(TINY, out_indices=out_indices), pool=pool)
    outs = model(torch.randn(2, 3, 48, 32))
    assert len(outs) == (1 if out_indices == 2 else len(out_indices))
    weights = [torch.randn_like(out) for out in outs]  # a plain square of normalised values has no gradient
    sum((out * weight).sum() for out, weight in zip(outs, weights, strict=True)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_empty_batch_gives_empty_maps():
    outs = FastVim(**TINY)(torch.zeros(0, 3, 32, 48))
    assert [tuple(out.shape) for out in outs] == [(0, 16, 2, 3)] * 2


def test_outputs_do_not_depend_on_the_other_images_of_a_batch():
    model = FastVim(**TINY).eval()
    images = torch.randn(3, 3, 48, 64)
    for out, alone in zip(model(images), model(images[1:2]), strict=True):
        torch.testing.assert_close(out[1:2], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize('frozen', [-1, 0, 1, 3])
def test_frozen_stages(frozen):
    model = FastVim(frozen_stages=frozen, **TINY).train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(name.startswith('patch_embed') for name in trained) == (frozen < 0)
    assert ('pos_embed' in trained) == (frozen < 0)
    for i, block in enumerate(model.layers):
        assert any(name.startswith(f'layers.{i}.') for name in trained) == (frozen < i + 1)
        assert block.training == (frozen < i + 1)
    assert any(name.startswith('outnorm_0') for name in trained) == (frozen < 1)
    assert any(name.startswith('outnorm_1') for name in trained) == (frozen < 3)
    if frozen < 3:
        sum(out.sum() for out in model(torch.randn(1, 3, 32, 32))).backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_drop_path_drops_what_enters_a_block_with_the_rate_of_the_one_before():
    model = FastVim(drop_path_rate=0.4, **dict(TINY, depth=5, out_indices=(4,)))
    assert [block.drop_path.rate for block in model.layers] == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.3])
    image = torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        assert not torch.equal(model(image)[0], model(image)[0])
        model.eval()
        assert torch.equal(model(image)[0], model(image)[0])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast_keeps_the_residual_stream_in_float32(dtype):
    model = FastVim(**TINY)
    image = torch.randn(1, 3, 32, 32)
    exact = model(image)
    streams = []
    for block in model.layers:
        block.register_forward_hook(lambda module, inputs, output: streams.append(output[1].dtype))
    with torch.autocast('cpu', dtype):
        outs = model(image)
    assert streams == [torch.float32] * 3
    sum(out.float().square().mean() for out in outs).backward()
    for out, expected in zip(outs, exact, strict=True):
        assert_close('out', out.float(), expected, 3e-2 if dtype == torch.bfloat16 else 5e-3)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_half_precision_weights():
    model = FastVim(**TINY).eval()
    image = torch.randn(1, 3, 32, 48)
    expected = model(image)
    for out, exact in zip(copy.deepcopy(model).bfloat16()(image.bfloat16()), expected, strict=True):
        assert out.dtype == torch.bfloat16
        assert_close('out', out.float(), exact, 5e-2)


def test_pool_scale_and_norms():
    image = torch.randn(1, 3, 32, 48)
    plain = FastVim(**TINY).eval()
    scaled = FastVim(pool_scale=0.25, **TINY).eval()
    scaled.load_state_dict(plain.state_dict())
    assert not torch.allclose(plain(image)[1], scaled(image)[1], atol=1e-3)
    bare = FastVim(norm_after_scan=False, norm='RMS', **TINY)
    assert not [name for name, _ in bare.named_parameters() if 'layernorm' in name]
    assert isinstance(bare.layers[0].norm, nn.RMSNorm)
    assert isinstance(bare.outnorm_0, nn.LayerNorm)
    assert bare(image)[0].isfinite().all()


def test_initialisation():
    model = FastVim(embed_dims=64, depth=4, out_indices=(0,))
    mixer = model.layers[0].mixer
    torch.testing.assert_close(mixer.A_b_log, torch.arange(1.0, 17).log().expand(128, 16))
    assert (mixer.D == 1).all()
    assert (mixer.D_b == 1).all()
    dt = F.softplus(mixer.dt_proj.bias)
    assert 0.9e-3 < dt.min() < 6e-3
    assert 0.04 < dt.max() < 0.11
    assert (mixer.dt_proj_b.bias == 0).all(), 'as published'
    for weight in (mixer.dt_proj.weight, mixer.dt_proj_b.weight):
        assert 0.9 * 4**-0.5 < weight.abs().max() <= 4**-0.5
    bound = 128**-0.5 / 2  # PyTorch's default, over the square root of the depth
    assert 0.9 * bound < mixer.out_proj.weight.abs().max() <= bound
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.patch_embed.proj.weight.std().item() == pytest.approx((3 * 16 * 16) ** -0.5, rel=0.1)
    assert (model.patch_embed.proj.bias == 0).all()


@pytest.mark.parametrize('strict', [True, False])
def test_checkpoint_of_another_patch_size_is_refused(strict):
    theirs = FastVim(patch_size=8, img_size=112, **TINY).state_dict()
    with pytest.raises(CheckpointError, match='trained with patches of 8 x 8 pixels, this model has patch_size=16'):
        FastVim(**TINY).load_state_dict(theirs, strict=strict)


def test_checkpoint_of_another_patch_size_is_refused_inside_a_detector(tmp_path):
    """mmengine only warns of shapes that differ; this error must come through."""
    from mmengine.runner import load_checkpoint

    class Detector(nn.Module):
        def __init__(self, patch_size):
            super().__init__()
            self.backbone = FastVim(patch_size=patch_size, **TINY)

    torch.save(Detector(8).state_dict(), tmp_path / 'small_patches.pth')
    with pytest.raises(CheckpointError, match='patches of 8 x 8'):
        load_checkpoint(Detector(16), str(tmp_path / 'small_patches.pth'), map_location='cpu')


def test_checkpoint_without_a_square_grid_is_refused():
    theirs = FastVim(img_size=(64, 96), **TINY).state_dict()
    with pytest.raises(
        CheckpointError, match=r'24 tokens, which are no square grid.*grid of 14 x 14.*img_size=\(H, W\)'
    ):
        FastVim(**TINY).load_state_dict(theirs)
    FastVim(img_size=(64, 96), **TINY).load_state_dict(theirs)


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        (dict(arch='giant'), ValueError, "FastVim: arch='giant' is unknown; expected one of .*tiny"),
        (dict(pool='median'), ValueError, "pool='median' is unknown; expected one of .*'mean', 'max', None"),
        (dict(scan_path='diagonal'), ValueError, "scan_path='diagonal' is unknown; expected one of .*'row', 'column'"),
        (dict(norm='BN'), ValueError, "norm='BN' is unknown"),
        (dict(backend='cuda'), ValueError, "backend='cuda' is unknown"),
        (dict(embed_dim=8), TypeError, "'embed_dim' is no argument .*did you mean 'embed_dims'"),
        (dict(out_indices=(0, 24)), ValueError, r'out_indices=\(0, 24\); expected ascending numbers from 0 to 23'),
        (dict(depth=12), ValueError, r'out_indices=\(5, 11, 17, 23\); expected ascending numbers from 0 to 11'),
        (dict(out_indices=()), ValueError, r'out_indices=\(\)'),
        (dict(out_indices=(2,), frozen_stages=4), ValueError, 'frozen_stages=4; expected -1 to 3'),
        (dict(pool=None, pool_scale=0.5), ValueError, 'pool_scale=0.5 has nothing to scale'),
        (
            dict(img_size=8),
            ValueError,
            r'img_size=8; expected pixels a side, or \(H, W\), of at least one patch \(16\)',
        ),
        (dict(img_size=(224, 224, 3)), ValueError, r'img_size=\(224, 224, 3\)'),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        FastVim(**arguments)
