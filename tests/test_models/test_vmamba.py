"""The VMamba backbone against golden tensors of the published model, and what it promises beyond them."""

import pytest
import torch
from golden_runs import VMAMBAS, check_backbone, published_spec
from mmvmamba.kernels.testing import assert_close

from mmvmamba.models import VMamba
from mmvmamba.models.backbones.vmamba import ARCHS
from mmvmamba.models.layers.ss2d_heads import chunked_scan

TINY = dict(embed_dims=8, depths=(1, 1, 2, 1))
PUBLISHED = dict(
    zip(
        ARCHS,
        (
            f'vmamba_{name}'
            for name in ['t_s1l8', 's_s1l20', 'b_s1l20', 't_s2l5', 's_s2l15', 'b_s2l15', 't_v0', 's_v0', 'b_v0']
        ),
        strict=True,
    )
)


@pytest.mark.parametrize('backend', ['auto', 'torch', 'reference'])
@pytest.mark.parametrize('name', VMAMBAS)
def test_golden(name, backend, data_dir):
    # 'auto' may be a backend that sums in another order
    gradients = 2e-5 if backend == 'auto' else 1e-5
    check_backbone(data_dir / f'vmamba_{name}.safetensors', backend, 1e-5, gradients)


@pytest.mark.parametrize('arch', ARCHS)
def test_names_shapes_and_counts_are_the_published_ones(arch):
    published = published_spec('vmamba')[PUBLISHED[arch]]
    with torch.device('meta'):
        model = VMamba(arch)
    ours = {name: list(value.shape) for name, value in model.state_dict().items()}
    theirs = {k: v for k, v in published['state_dict'].items() if k not in published['classifier_only']}
    assert ours == theirs
    assert sum(p.numel() for p in model.parameters()) == published['backbone_params']
    assert model.depths == tuple(published['official_kwargs']['depths'])
    assert ARCHS[arch]['drop_path_rate'] == published['official_kwargs']['drop_path_rate']


@pytest.mark.parametrize('arch', ['tiny_s1l8', 'tiny_v0', 'tiny_m2'])
@pytest.mark.parametrize('size', [(4, 4), (5, 4), (4, 37), (33, 47), (64, 64), (7, 129)], ids=str)
def test_any_size(arch, size):
    model = VMamba(arch, **TINY).eval()
    outs = model(torch.randn(1, 3, *size))
    height, width = (s // 4 for s in size) if arch == 'tiny_v0' else ((s + 3) // 4 for s in size)
    for i, out in enumerate(outs):
        assert out.shape == (1, 8 * 2**i, height, width)
        assert out.isfinite().all()
        height, width = (height + 1) // 2, (width + 1) // 2


@pytest.mark.parametrize('arch', ['tiny_s1l8', 'tiny_v0'])
def test_empty_batch_gives_empty_maps(arch):
    outs = VMamba(arch, **TINY)(torch.zeros(0, 3, 32, 48))
    assert [tuple(out.shape) for out in outs] == [(0, 8, 8, 12), (0, 16, 4, 6), (0, 32, 2, 3), (0, 64, 1, 2)]


@pytest.mark.parametrize('out_indices', [(0,), (1,), (2,), (3,), (0, 2), (1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize('arch', ['tiny_s1l8', 'tiny_v0', 'tiny_m2'])
def test_every_parameter_gets_a_gradient(arch, out_indices):
    model = VMamba(arch, out_indices=out_indices, drop_path_rate=0.0, **TINY)
    outs = model(torch.randn(2, 3, 32, 32))
    assert len(outs) == len(out_indices)
    sum(out.square().sum() for out in outs).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('frozen', [-1, 0, 1, 3, 4])
def test_frozen_stages(frozen):
    model = VMamba(frozen_stages=frozen, **TINY).train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(name.startswith('patch_embed') for name in trained) == (frozen < 0)
    for i in range(4):
        stage = {name for name in trained if name.startswith((f'layers.{i}.', f'outnorm{i}.'))}
        assert bool(stage) == (frozen < i + 1)
        assert model.layers[i].training == (frozen < i + 1)


def test_drop_path_rises_to_the_rate_and_is_off_in_evaluation():
    model = VMamba(drop_path_rate=0.4, **TINY)
    rates = [block.drop_path.rate for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    image = torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        assert not torch.equal(model(image)[3], model(image)[3])
        model.eval()
        assert torch.equal(model(image)[3], model(image)[3])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    model = VMamba(drop_path_rate=0.0, **TINY)
    image = torch.randn(1, 3, 32, 32)
    exact = model(image)
    with torch.autocast('cpu', dtype):
        outs = model(image)
    sum(out.float().square().mean() for out in outs).backward()
    for out, expected in zip(outs, exact, strict=True):
        assert_close('out', out.float(), expected, 3e-2 if dtype == torch.bfloat16 else 5e-3)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('scheme', ['mamba', 'rand', 'zero'])
def test_ssm_init(scheme):
    op = VMamba('tiny_v0', ssm_init=scheme, embed_dims=32, depths=(1, 1, 1, 1)).layers[0].blocks[0].op
    assert (op.Ds == 1).all()
    if scheme == 'mamba':
        torch.testing.assert_close(op.A_logs, torch.arange(1.0, 17).log().expand(256, 16))
        dt = torch.nn.functional.softplus(op.dt_projs_bias)
        assert 0.9e-3 < dt.min() < 5e-3
        assert 0.05 < dt.max() < 0.11
        assert op.dt_projs_weight.abs().max() <= 2**-0.5
    elif scheme == 'rand':
        assert op.A_logs.std().item() == pytest.approx(1, abs=0.1)
        assert op.dt_projs_weight.std().item() == pytest.approx(0.1, abs=0.02)
        assert op.dt_projs_weight.min() < 0
    else:
        assert (op.A_logs == 0).all()
        assert op.dt_projs_bias.min() >= 0
        assert op.dt_projs_bias.max() <= 0.1


@pytest.mark.parametrize('scheme', ['rand', 'zero', None])
def test_ssm_init_of_mamba2_blocks(scheme):
    op = VMamba('tiny_m2', ssm_init=scheme, embed_dims=256, depths=(1,), out_indices=(0,)).layers[0].blocks[0].op
    assert op.Ds.shape == (4, 16, 16)
    assert (op.Ds == 1).all()
    assert op.A_logs.std().item() == pytest.approx(1 if scheme == 'rand' else 0, abs=0.25)
    assert (op.dt_projs_bias.min() < 0) == (scheme == 'rand')
    assert op.dt_projs_bias.abs().max() < (0.4 if scheme == 'rand' else 0.1)


@pytest.mark.parametrize('length', [1, 7, 8, 20])
def test_chunked_scan_equals_the_recurrence(length):
    """With gradients, in float64; chunks that the length does not fill included."""
    shapes = dict(u=(2, length, 3, 4), log_decay=(2, length, 3), Bs=(2, length, 5), Cs=(2, length, 5))
    inputs = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    inputs['log_decay'] = -inputs['log_decay'].exp()
    for value in inputs.values():
        value.requires_grad_()
    u, log_decay, Bs, Cs = inputs.values()
    state, expected = 0, []
    for t in range(length):
        state = log_decay[:, t].exp()[..., None, None] * state + torch.einsum('brp,bn->brpn', u[:, t], Bs[:, t])
        expected.append(torch.einsum('brpn,bn->brp', state, Cs[:, t]))
    outs = chunked_scan(*inputs.values(), chunk=8), torch.stack(expected, dim=1)
    torch.testing.assert_close(*outs)
    weight = torch.randn_like(outs[0])
    grads = [torch.autograd.grad((out * weight).sum(), list(inputs.values())) for out in outs]
    torch.testing.assert_close(*grads)


def test_without_depthwise_convolution():
    model = VMamba(conv_size=0, **TINY)
    assert not [name for name, _ in model.named_parameters() if 'conv2d' in name]
    assert model(torch.randn(1, 3, 16, 16))[0].shape == (1, 8, 4, 4)


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        (dict(arch='huge'), ValueError, "VMamba: arch='huge' is unknown; expected one of .*tiny_s1l8"),
        (dict(routes='zigzag'), ValueError, "routes='zigzag' is unknown"),
        (dict(ssm_init='ones'), ValueError, "ssm_init='ones' is unknown"),
        (dict(backend='cuda'), ValueError, "backend='cuda' is unknown"),
        (dict(stem='conv7'), ValueError, "stem='conv7' is unknown"),
        (dict(embed_dim=8), TypeError, "'embed_dim' is no argument .*did you mean 'embed_dims'"),
        (dict(out_indices=(0, 4)), ValueError, r'out_indices=\(0, 4\); expected ascending numbers from 0 to 3'),
        (dict(out_indices=()), ValueError, r'out_indices=\(\)'),
        (dict(out_indices=(1, 0)), ValueError, r'out_indices=\(1, 0\)'),
        (dict(frozen_stages=5), ValueError, 'frozen_stages=5; expected -1 to 4'),
        (dict(conv_size=2), ValueError, 'conv_size=2; expected an odd number'),
        (dict(arch='tiny_m2', ssm_init='mamba'), ValueError, "ssm_init='mamba'; expected .*ssm_init='rand' or 'zero'"),
        (dict(arch='tiny_m2', routes='bidi'), ValueError, "routes='bidi'.*; expected gated=False, routes='cross'"),
        (dict(arch='tiny_m2', gated=True), ValueError, 'mamba2=True with gated=True'),
        (dict(arch='tiny_m2', dt_rank=5), ValueError, '96 inner channels cannot be shared out among 5 heads'),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        VMamba(**arguments)
