"""FastChannelVim and ChannelVim against golden tensors of the published models, and what they promise beyond them."""

import pytest
import torch
from golden_runs import CHANNEL_VIMS, channel_vim, check_channel_vim, parameters_of, published_spec
from mmvmamba.kernels.testing import load_golden

from mmvmamba import checkpoints
from mmvmamba.checkpoints import CheckpointError
from mmvmamba.models import ChannelVim, FastChannelVim

TINY = dict(embed_dims=16, depth=3, d_state=4, in_channels=5)
PUBLISHED = {
    'fastchannelvim_s16': (FastChannelVim, 16),
    'fastchannelvim_s8': (FastChannelVim, 8),
    'channelvim_s16': (ChannelVim, 16),
    'channelvim_s8': (ChannelVim, 8),
}


@pytest.mark.parametrize('backend', ['auto', 'torch', 'reference'])
@pytest.mark.parametrize('name', CHANNEL_VIMS)
def test_golden(name, backend, data_dir):
    check_channel_vim(data_dir / f'{name}.safetensors', backend, 2e-6, 1e-5)


def test_golden_subset_is_what_a_training_step_does_that_draws_it(data_dir, monkeypatch):
    golden, metadata = load_golden(data_dir / 'channel_fastvim_subset.safetensors')
    parameters = parameters_of(golden)
    weight, bias = parameters.pop('head.weight'), parameters.pop('head.bias')
    model = channel_vim(metadata['official_kwargs']).train()
    model.load_state_dict(parameters)
    monkeypatch.setattr(model, '_drawn', lambda planes: golden['channels'])
    logits = model(golden['input'])[0] @ weight.T + bias
    torch.testing.assert_close(logits, golden['out.0'], rtol=0, atol=2e-6)


@pytest.mark.parametrize('name', PUBLISHED)
def test_names_shapes_and_counts_are_the_published_ones(name):
    published = published_spec('classifier')[name]
    cls, patch_size = PUBLISHED[name]
    with torch.device('meta'):
        model = cls(patch_size=patch_size)
    head = {'head.weight': [161, 384], 'head.bias': [161]}
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes | head == published['state_dict']
    assert sum(p.numel() for p in model.parameters()) + 161 * 385 == published['params']


@pytest.mark.parametrize('cls', [FastChannelVim, ChannelVim])
def test_published_containers_load_strictly(cls, tmp_path):
    """Lightning's: `backbone.` before every name, and a head that a backbone has no use for."""
    source = cls(**TINY, img_size=32)
    state_dict = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    state_dict |= {'backbone.head.weight': torch.zeros(4, 16), 'backbone.head.bias': torch.zeros(4)}
    torch.save({'state_dict': state_dict, 'epoch': 99}, tmp_path / 'published.ckpt')
    model = cls(**TINY, img_size=32, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'published.ckpt')))
    model.init_weights()
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    broken = dict(state_dict)
    del broken['backbone.patch_embed.channel_embed.weight']
    with pytest.raises(CheckpointError, match=r'patch_embed.channel_embed.weight'):
        checkpoints.load({'state_dict': broken}, cls(**TINY, img_size=32))


def test_architecture_is_told_by_its_shapes():
    model = FastChannelVim(depth=24, embed_dims=384, d_state=1)
    assert checkpoints.recognise(model.state_dict()) == ('channel_vim', 'small')


@pytest.mark.parametrize('cls', [FastChannelVim, ChannelVim])
@pytest.mark.parametrize('planes', ['inner', 'outer'])
def test_a_subset_in_a_batch_is_the_subset_alone(cls, planes):
    """Images that lack channels are padded by whatever, and get what they would get alone."""
    model = cls(**TINY, img_size=32, planes=planes).eval()
    x = torch.randn(5, 4, 32, 48)
    channels = torch.tensor([[0, 1, 2, 3], [4, -1, 0, -1], [-1, 3, -1, -1], [1, -1, 4, 2], [2, 0, -1, 4]])
    together = model(torch.where(channels[..., None, None] < 0, torch.nan, x), channels)[0]
    for i, row in enumerate(channels):
        present = row >= 0
        alone = model(x[i : i + 1, present], row[present])[0]
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=2e-6)
    assert not torch.allclose(together[4], model(x[4:, [0, 1, 3]], [0, 2, 4])[0], atol=1e-3)  # rows of the table count


def test_padded_batches_are_differentiable():
    model = FastChannelVim(**TINY, img_size=32)
    x = torch.randn(3, 2, 32, 32, requires_grad=True)
    out = model(x, torch.tensor([[0, 1], [-1, 4], [3, 2]]))[0]
    (out * torch.randn_like(out)).sum().backward()
    assert (x.grad.flatten(2).abs().sum(2) > 0).tolist() == [[True, True], [False, True], [True, True]]
    assert model.patch_embed.channel_embed.weight.grad.any(1).all()


@pytest.mark.parametrize('out_type', ['avg_featmap', 'featmap', 'dense'])
@pytest.mark.parametrize('pool', ['mean', 'max', None])
def test_every_parameter_gets_a_gradient(pool, out_type):
    model = FastChannelVim(**TINY, img_size=32, pool=pool, out_type=out_type, sample_channels=False)
    outs = model(torch.randn(2, 5, 48, 32))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_maps_average_or_hold_the_channels():
    maps = FastChannelVim(**TINY, img_size=32, out_type='dense', out_indices=(0, 2)).eval()
    whole = FastChannelVim(**TINY, img_size=32, out_type='dense', out_indices=(0, 2), merge='concat').eval()
    whole.load_state_dict(maps.state_dict())
    x = torch.randn(2, 3, 32, 50)
    assert (maps.num_features, whole.num_features) == ([16, 16], [80, 80])
    for mean, all_of_them in zip(maps(x, [4, 0, 2]), whole(x, [4, 0, 2]), strict=True):
        assert mean.shape == (2, 16, 2, 4)
        by_channel = all_of_them.unflatten(1, (5, 16))
        assert not by_channel[:, [1, 3]].any()
        torch.testing.assert_close(by_channel[:, [0, 2, 4]].mean(1), mean, rtol=0, atol=1e-6)
        assert mean.is_contiguous()
        assert all_of_them.is_contiguous()


def test_vector_is_the_mean_of_the_map():
    vector = FastChannelVim(**TINY, img_size=32).eval()
    featmap = FastChannelVim(**TINY, img_size=32, out_type='featmap').eval()
    featmap.load_state_dict(vector.state_dict())
    x = torch.randn(2, 5, 33, 50)
    torch.testing.assert_close(vector(x)[0], featmap(x)[0].mean((2, 3)), rtol=0, atol=1e-6)


@pytest.mark.parametrize('cls', [FastChannelVim, ChannelVim])
def test_any_sizes_in_turn_through_one_instance(cls):
    model = cls(**TINY, img_size=(32, 48)).eval()
    for size in ((224, 224), (16, 16), (33, 51), (17, 100)):
        assert model(torch.randn(1, 5, *size))[0].isfinite().all()
    assert model(torch.zeros(0, 5, 32, 32))[0].shape == (0, 16)


def test_one_and_many_channels():
    for count in (1, 64):
        model = FastChannelVim(**dict(TINY, in_channels=count), img_size=32).eval()
        assert model(torch.randn(1, count, 32, 32))[0].shape == (1, 16)


def test_many_channels_on_an_odd_grid_are_right():
    """64 channels, some of them missing from an image, three by five patches: against the loop of the reference."""
    sizes = dict(embed_dims=16, depth=2, d_state=2, in_channels=64, patch_size=8)
    model = FastChannelVim(**sizes, img_size=(24, 40)).eval()
    x, channels = torch.randn(2, 64, 24, 40), torch.arange(64).repeat(2, 1)
    channels[1, 1::3] = -1
    out = model(x, channels)[0]
    for block in model.layers:
        block.mixer.backend = 'reference'
    torch.testing.assert_close(out, model(x, channels)[0], rtol=0, atol=2e-6)


def test_an_empty_batch_of_padded_images():
    model = FastChannelVim(**TINY, img_size=32)
    out = model(torch.zeros(0, 3, 32, 32), torch.zeros(0, 3, dtype=torch.int64))[0]
    assert out.shape == (0, 16)
    out.sum().backward()


def test_one_channel_is_fastvim(data_dir):
    """With one plane the sequence is FastVim's; its embedding is a bias of the patches."""
    from mmvmamba.models import FastVim

    model = FastChannelVim(**dict(TINY, in_channels=1), img_size=(32, 48), out_type='dense', out_indices=(0, 2))
    plain = FastVim(**dict(TINY, in_channels=1), img_size=(32, 48), out_indices=(0, 2), norm='RMS')
    theirs = dict(model.state_dict())
    bias = theirs.pop('patch_embed.channel_embed.weight')[0]
    theirs['patch_embed.proj.bias'] = theirs['patch_embed.proj.bias'] + bias
    theirs['patch_embed.proj.weight'] = theirs['patch_embed.proj.weight'][:, :, 0]
    plain.load_state_dict(theirs)
    x = torch.randn(2, 1, 40, 48)
    for out, expected in zip(model.eval()(x), plain.eval()(x), strict=True):
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


class TestSampling:
    """Channels that a training step draws."""

    def test_seed_fixes_the_draws(self):
        model = FastChannelVim(**TINY, img_size=32).train()
        draws = []
        for _ in range(2):
            torch.manual_seed(3)
            draws.append([model._drawn(5).tolist() for _ in range(40)])
        assert draws[0] == draws[1]
        assert all(draw == sorted(set(draw)) for draw in draws[0])
        assert {len(draw) for draw in draws[0]} == {1, 2, 3, 4, 5}
        assert {c for draw in draws[0] for c in draw} == {0, 1, 2, 3, 4}

    def test_a_drawn_step_is_the_subset(self):
        model = FastChannelVim(**TINY, img_size=32).train()
        x = torch.randn(2, 5, 32, 32)
        torch.manual_seed(1)
        out = model(x)[0]
        torch.manual_seed(1)
        drawn = model._drawn(5)
        torch.testing.assert_close(out, model(x[:, drawn], drawn)[0], rtol=0, atol=1e-6)
        assert 0 < len(drawn) < 5

    def test_not_in_evaluation_nor_where_channels_are_given(self, monkeypatch):
        model = FastChannelVim(**TINY, img_size=32)
        monkeypatch.setattr(model, '_drawn', lambda planes: pytest.fail('drew channels'))
        x = torch.randn(1, 5, 32, 32)
        model.eval()(x)
        model.train()(x, range(5))
        other = FastChannelVim(**TINY, img_size=32, sample_channels=False).train()
        monkeypatch.setattr(other, '_drawn', lambda planes: pytest.fail('drew channels'))
        other(x)

    def test_unsorted(self):
        model = FastChannelVim(**TINY, img_size=32, sort_channels=False)
        assert any(draw != sorted(draw) for draw in (model._drawn(5).tolist() for _ in range(20)))

    def test_channels_of_the_constructor_are_drawn_from(self):
        model = FastChannelVim(**TINY, img_size=32, channels=(4, 1)).train()
        model(torch.randn(1, 2, 32, 32))[0].sum().backward()
        rows = model.patch_embed.channel_embed.weight.grad.any(1)
        assert not rows[[0, 2, 3]].any()


def test_recomputed_blocks_give_the_same_gradients():
    model = FastChannelVim(**TINY, img_size=32).train()
    x = torch.randn(2, 5, 32, 32)
    grads = []
    for with_cp in (False, True):
        model.with_cp = with_cp
        model.zero_grad()
        torch.manual_seed(0)
        model(x)[0].square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def test_frozen_stages():
    model = FastChannelVim(**TINY, img_size=32, frozen_stages=1).train()
    trained = {name.split('.')[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {'layers', 'norm_f'}
    assert not any(p.requires_grad for p in model.layers[0].parameters())


def test_construction_size_does_not_matter():
    small, big = (FastChannelVim(**TINY, img_size=size).eval() for size in (64, 128))
    big.load_state_dict(small.state_dict())
    x = torch.randn(1, 5, 128, 128)
    torch.testing.assert_close(small(x)[0], big(x)[0], rtol=0, atol=1e-6)


def test_initialisation():
    model = FastChannelVim(embed_dims=64, depth=1, in_channels=50)
    assert model.patch_embed.channel_embed.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    bound = (16 * 16) ** -0.5  # PyTorch's default of a convolution
    assert 0.9 * bound < model.patch_embed.proj.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        (dict(out_type='map'), ValueError, "out_type='map' is unknown"),
        (dict(out_type='cls_token'), ValueError, "out_type='cls_token' needs pool=None"),
        (dict(merge='sum'), ValueError, "merge='sum' is unknown"),
        (dict(channels=(0, 0)), ValueError, r'channels=\(0, 0\); expected different numbers from 0 to 4'),
        (dict(channels=(5,)), ValueError, r'channels=\(5,\)'),
        (dict(out_indices=(0,)), ValueError, r"out_type='avg_featmap' comes behind the last block"),
        (dict(embed_dim=8), TypeError, "did you mean 'embed_dims'"),
        (dict(img_size=8), ValueError, 'img_size=8'),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        FastChannelVim(**{**TINY, **arguments})


@pytest.mark.parametrize(
    ('x', 'channels', 'error', 'words'),
    [
        (torch.zeros(1, 3, 32, 32), None, ValueError, r'expected \(B, 5, H, W\).*channels=\[...\] says which of the 5'),
        (torch.zeros(1, 2, 32, 32), [1], ValueError, r'expected \(B, 1, H, W\)'),
        (torch.zeros(1, 2, 32, 32), [1, 7], ValueError, r'channels=\[1, 7\]'),
        (torch.zeros(1, 2, 8, 32), [1, 2], ValueError, 'input of 8 x 32 pixels is too small'),
        (torch.zeros(1, 2, 32, 32).byte(), [1, 2], TypeError, 'normalise the image first'),
        (
            torch.zeros(2, 2, 32, 32),
            torch.tensor([[0, 1]]),
            ValueError,
            r'channels has shape \(1, 2\); expected \(2, 2\)',
        ),
        (torch.zeros(1, 2, 32, 32), torch.tensor([[-1, -1]]), ValueError, 'a channel that is not -1 in every row'),
        (torch.zeros(1, 2, 32, 32), torch.tensor([[3, 3]]), ValueError, r'channels=\[3, 3\]; expected different'),
    ],
)
def test_bad_input(x, channels, error, words):
    with pytest.raises(error, match=words):
        FastChannelVim(**TINY, img_size=32)(x, channels)


def test_checkpoint_of_another_patch_size_is_refused():
    theirs = FastChannelVim(**TINY, patch_size=8, img_size=32).state_dict()
    with pytest.raises(CheckpointError, match='patches of 8 x 8 pixels, this model has patch_size=16'):
        FastChannelVim(**TINY, img_size=32).load_state_dict(theirs)
