"""Masked autoencoders of FastVim and Vim against golden tensors of the published ones; masks beyond them."""

import pytest
import torch
from golden_runs import check_gradient, parameters_of, published_spec
from mmvmamba.kernels.testing import load_golden

from mmvmamba import checkpoints
from mmvmamba.checkpoints import CheckpointError
from mmvmamba.models import FastMaskVim, FastVim, MaskedVimDecoder
from mmvmamba.models.layers.positions import sincos_positions

TINY = dict(embed_dims=16, depth=3, d_state=4)
DECODER = ('decoder_', 'mask_token')
PUBLISHED = {
    'mae_fastvim_b': ('base', 'mean'),
    'mae_fastvim_l': ('large', 'mean'),
    'mae_fastvim_h': ('huge', 'mean'),
    'mae_vim_b': ('base', None),
    'mae_vim_l': ('large', None),
}


def autoencoder(theirs: dict, pool, **options):
    """Encoder, decoder and mmpretrain's head of a golden file."""
    from mmpretrain.models import MAEPretrainHead

    patch, width, depth = theirs['patch_size'], theirs['embed_dim'], theirs['depth']
    encoder = FastMaskVim(
        img_size=theirs['img_size'], patch_size=patch, embed_dims=width, depth=depth, pool=pool, **options
    )
    decoder = MaskedVimDecoder(
        encoder.grid,
        patch,
        3,
        width,
        theirs['decoder_embed_dim'],
        theirs['decoder_depth'],
        depth,
        pool is None,
        **options,
    )
    # parts of `loss` as in mmpretrain's MAE
    head = MAEPretrainHead(dict(type='mmpretrain.PixelReconstructionLoss', criterion='L2'), True, patch)
    return encoder, decoder, head


def parts(parameters: dict) -> tuple[dict, dict]:
    decoder = {name: value for name, value in parameters.items() if name.startswith(DECODER)}
    return {name: value for name, value in parameters.items() if name not in decoder}, decoder


@pytest.mark.parametrize('backend', ['auto', 'torch', 'reference'])
@pytest.mark.parametrize('name', ['mae_fastvim', 'mae_vim'])
def test_golden(name, backend, data_dir):
    golden, metadata = load_golden(data_dir / f'{name}.safetensors')
    pool = None if name == 'mae_vim' else 'mean'
    encoder, decoder, head = autoencoder(metadata['official_kwargs'], pool, backend=backend)
    fixed = [module.clone() for module in (encoder.pos_embed, decoder.decoder_pos_embed)]
    for module, own in zip((encoder, decoder), parts(parameters_of(golden)), strict=True):
        module.load_state_dict(own)
    for ours, theirs in zip(fixed, (encoder.pos_embed, decoder.decoder_pos_embed), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    latent, mask, ids_restore = encoder(golden['input'], ids_keep=golden['ids_keep'])
    prediction = decoder(latent, ids_restore)
    loss = head.loss(prediction, golden['input'], mask)
    assert torch.equal(mask, golden['mask'])
    for i, out in enumerate((latent, prediction, loss)):
        torch.testing.assert_close(out, golden[f'out.{i}'], rtol=0, atol=5e-6)
    loss.backward()
    for label, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        check_gradient(label, parameter.grad, golden, 1e-5)


def test_consistent_rule_differs_from_the_published_one(data_dir):
    golden, metadata = load_golden(data_dir / 'mae_fastvim.safetensors')
    encoder, _, _ = autoencoder(metadata['official_kwargs'], 'mean')
    other = FastMaskVim(img_size=48, patch_size=8, embed_dims=32, depth=3, consistent=True)
    for model in (encoder, other):
        model.load_state_dict(parts(parameters_of(golden))[0])
    outs = [model(golden['input'], ids_keep=golden['ids_keep'])[0] for model in (encoder, other)]
    assert 2e-3 < (outs[0] - outs[1]).abs().max() < 0.1


@pytest.mark.parametrize('name', PUBLISHED)
def test_names_shapes_and_counts_are_the_published_ones(name):
    published = published_spec('classifier')[name]
    arch, pool = PUBLISHED[name]
    with torch.device('meta'):
        encoder = FastMaskVim(arch, pool=pool)
        sizes = dict(embed_dims=encoder.num_features[0], encoder_depth=encoder.depth)
        decoder = MaskedVimDecoder(encoder.grid, encoder.patch_size, cls_token=pool is None, **sizes)
    state_dict = {**encoder.state_dict(), **decoder.state_dict()}
    assert {key: list(value.shape) for key, value in state_dict.items()} == published['state_dict']
    fixed = encoder.pos_embed.numel() + decoder.decoder_pos_embed.numel()
    trained = sum(p.numel() for module in (encoder, decoder) for p in module.parameters())
    assert (trained + fixed, fixed) == (published['params'], published['fixed_params'])


def test_positions_are_mmpretrains_transposed():
    from mmpretrain.models.utils import build_2d_sincos_position_embedding

    theirs = build_2d_sincos_position_embedding(5, 16).unflatten(1, (5, 5)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(sincos_positions((5, 5), 16), theirs.float(), rtol=0, atol=1e-6)
    assert sincos_positions((2, 3), 8).shape == (1, 6, 8)
    with pytest.raises(ValueError, match='multiple of 4'):
        sincos_positions((2, 2), 6)


@pytest.mark.parametrize('pool', ['mean', None])
def test_ratio_zero_is_the_plain_encoder(pool):
    model = FastMaskVim(**TINY, img_size=(48, 80), mask_ratio=0, pool=pool).eval()
    x = torch.randn(2, 3, 48, 80)
    latent, mask, ids_restore = model(x)
    assert not mask.any()
    assert torch.equal(ids_restore, torch.arange(15).expand(2, -1))
    if pool is None:
        latent = torch.cat([latent[:, :7], latent[:, 8:]], dim=1)
    torch.testing.assert_close(latent.transpose(1, 2).unflatten(2, (3, 5)), model(x, mask=None)[0], rtol=0, atol=2e-6)


def test_unmasked_blocks_are_fastvims():
    model = FastMaskVim(**TINY, img_size=48).eval()
    plain = FastVim(**TINY, img_size=48, out_indices=(2,), norm='RMS').eval()
    own = {k: v for k, v in model.state_dict().items() if k != 'norm_f.weight'}
    plain.load_state_dict({**plain.state_dict(), **own})
    x = torch.randn(1, 3, 48, 64)
    hidden = []
    for network in (model, plain):
        network.layers[-1].register_forward_hook(lambda module, inputs, out: hidden.append(out[0]))
    model(x, mask=False)
    plain(x)
    torch.testing.assert_close(*hidden, rtol=0, atol=1e-6)


@pytest.mark.parametrize('ids', [[[0, 1, 2]], [[3, 7, 11]], [[11]], [list(range(12))]], ids=len)
@pytest.mark.parametrize('pool', ['mean', None])
def test_masks_that_remove_whole_lines(ids, pool):
    model = FastMaskVim(**TINY, img_size=(48, 64), pool=pool)
    latent, mask, _ = model(torch.randn(1, 3, 48, 64), ids_keep=torch.tensor(ids))
    assert latent.shape == (1, len(ids[0]) + (pool is None), 16)
    assert (mask == 0).nonzero()[:, 1].tolist() == ids[0]
    latent.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_mask_that_removes_whole_rows_and_columns_is_right():
    """Against the loop of the reference: empty lines stay in the scanned sequence."""
    model = FastMaskVim(**TINY, img_size=(48, 80)).eval()
    x, ids = torch.randn(2, 3, 48, 80), torch.tensor([[1, 3, 11], [5, 6, 9]])  # three rows of five patches
    out = model(x, ids_keep=ids)[0]
    for block in model.layers:
        block.mixer.backend = 'reference'
    torch.testing.assert_close(out, model(x, ids_keep=ids)[0], rtol=0, atol=2e-6)


def test_masks_are_drawn_by_ratio_and_seed():
    model = FastMaskVim(**TINY, img_size=64)
    x = torch.randn(3, 3, 64, 64)
    torch.manual_seed(0)
    latent, mask, ids_restore = model(x)
    assert latent.shape == (3, 4, 16)
    assert mask.sum(1).tolist() == [12, 12, 12]
    assert not torch.equal(mask[0], mask[1])
    assert torch.equal(ids_restore.sort(1).values, torch.arange(16).expand(3, -1))
    for row, places in zip(mask, ids_restore, strict=True):
        assert torch.equal(places[row == 0], torch.arange(4)), 'kept patches are in order'
    torch.manual_seed(0)
    assert torch.equal(model(x)[1], mask)
    assert model(x[:0])[0].shape == (0, 4, 16)


@pytest.mark.parametrize('pool', ['mean', None])
def test_published_container_loads_into_both_parts_strictly(pool, tmp_path):
    source = FastMaskVim(**TINY, img_size=32, pool=pool)
    decoder = dict(grid=2, embed_dims=16, decoder_embed_dims=8, decoder_depth=1, cls_token=pool is None)
    state_dict = {**source.state_dict(), **MaskedVimDecoder(**decoder).state_dict()}
    file = tmp_path / 'FastMaskVim.ckpt'
    torch.save({'state_dict': {f'backbone.{name}': value for name, value in state_dict.items()}}, file)
    pretrained = dict(type='Pretrained', checkpoint=str(file))
    parts = (
        FastMaskVim(**TINY, img_size=32, pool=pool, init_cfg=pretrained),
        MaskedVimDecoder(**decoder, init_cfg=pretrained),
    )
    for part in parts:
        part.init_weights()
        assert all(torch.equal(value, state_dict[name]) for name, value in part.state_dict().items())
    for name in ('layers.0.norm.weight', 'decoder_norm.weight'):
        broken = {f'backbone.{key}': value for key, value in state_dict.items() if key != name}
        part = parts[name.startswith('decoder')]
        torch.save({'state_dict': broken}, file)
        part.is_init = False
        with pytest.raises(CheckpointError, match=name):
            part.init_weights()


@pytest.mark.parametrize('prefix', ['backbone.', ''], ids=['lightning', 'bare'])
def test_published_container_loads_whole_into_mae_strictly(prefix, tmp_path):
    """Published files have the decoder beside the encoder; mmpretrain's `MAE` has it in its neck."""
    from mmengine.registry import MODELS

    model = MODELS.build(
        dict(
            type='mmpretrain.MAE',
            data_preprocessor=dict(type='mmpretrain.SelfSupDataPreprocessor'),
            backbone=dict(type='mmvmamba.FastMaskVim', **TINY, img_size=32),
            neck=dict(type='mmvmamba.MaskedVimDecoder', grid=2, embed_dims=16, decoder_embed_dims=8, decoder_depth=1),
            head=dict(
                type='mmpretrain.MAEPretrainHead',
                patch_size=16,
                loss=dict(type='mmpretrain.PixelReconstructionLoss', criterion='L2'),
            ),
        )
    )
    theirs = {
        f'{prefix}{name}': torch.randn_like(value)
        for part in (model.backbone, model.neck)
        for name, value in part.state_dict().items()
    }
    report = checkpoints.load({'state_dict': theirs}, model)
    assert (report.dropped, report.fresh) == ([], [])
    for part in (model.backbone, model.neck):
        assert all(torch.equal(value, theirs[prefix + name]) for name, value in part.state_dict().items())
    for name in ('layers.1.mixer.A_log', 'decoder_norm.weight', 'mask_token'):
        broken = {key: value for key, value in theirs.items() if key != prefix + name}
        with pytest.raises(CheckpointError, match=name):
            checkpoints.load({'state_dict': broken}, model)
    encoder = {name: value for name, value in theirs.items() if 'decoder_' not in name and 'mask_token' not in name}
    with pytest.raises(CheckpointError, match=r"nothing for \['neck'\]"):
        checkpoints.load({'state_dict': encoder}, model)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'own.pth')
    checkpoints.load(str(tmp_path / 'own.pth'), model)


@pytest.mark.parametrize('prefixes', [('backbone.', 'backbone.'), ('backbone.', 'neck.')], ids=['theirs', 'ours'])
def test_fastvim_fine_tunes_from_it(prefixes):
    encoder = FastMaskVim(**TINY, img_size=32)
    decoder = MaskedVimDecoder(grid=2, embed_dims=16, decoder_embed_dims=8, decoder_depth=1)
    state_dict = {
        prefix + name: value
        for prefix, part in zip(prefixes, (encoder, decoder), strict=True)
        for name, value in part.state_dict().items()
    }
    model = FastVim(**TINY, img_size=64, out_indices=(2,), pool_scale=0.25, norm='RMS')
    report = checkpoints.load({'state_dict': state_dict}, model)
    assert report.fresh == ['outnorm_0.weight', 'outnorm_0.bias']
    assert torch.equal(model.layers[1].mixer.A_log, encoder.layers[1].mixer.A_log)
    assert model.pos_embed.requires_grad


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(mask_ratio=1), r'mask_ratio=1; expected a share in \[0, 1\)'),
        (dict(pool='max'), "pool='max' is unknown"),
        (dict(img_size=8), 'img_size=8'),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        FastMaskVim(**TINY, **arguments)


@pytest.mark.parametrize('ids', [[[1, 0]], [[0, 0]], [[0, 4]], [[-1, 2]], [[0], [1]], [[]]])
def test_bad_ids(ids):
    with pytest.raises(ValueError, match='expected int64'):
        FastMaskVim(**TINY, img_size=32)(torch.zeros(1, 3, 32, 32), ids_keep=torch.tensor(ids, dtype=torch.int64))


def test_too_high_a_ratio_and_another_grid_are_refused():
    with pytest.raises(ValueError, match=r'mask_ratio=0\.9 leaves none of 4 patches'):
        FastMaskVim(**TINY, img_size=32, mask_ratio=0.9)(torch.zeros(1, 3, 32, 32))
    decoder = MaskedVimDecoder(grid=2, embed_dims=16, decoder_embed_dims=8)
    with pytest.raises(ValueError, match=r'expected \(B, 4\), the patches of grid=\(2, 2\)'):
        decoder(torch.zeros(1, 2, 16), torch.zeros(1, 9, dtype=torch.int64))


def test_initialisation():
    model = FastMaskVim(embed_dims=64, depth=1)
    bound = (6 / (64 + 3 * 16 * 16)) ** 0.5
    assert 0.9 * bound < model.patch_embed.proj.weight.abs().max() <= bound
    assert model.patch_embed.proj.bias.any()
    decoder = MaskedVimDecoder(embed_dims=64, encoder_depth=16)
    bound = 1024**-0.5 / 4
    assert 0.9 * bound < decoder.decoder_blocks[1].mixer.out_proj.weight.abs().max() <= bound
    assert not decoder.decoder_pred.bias.any()
