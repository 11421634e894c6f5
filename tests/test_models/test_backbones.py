"""What every backbone promises."""

import copy
import functools
import subprocess
import sys

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as ROOT_MODELS
from mmvmamba.kernels.testing import assert_close

from mmvmamba.models import FastVim, VMamba
from mmvmamba.models.layers.drop_path import DropPath
from mmvmamba.registry import MODELS

TINY = {
    VMamba: dict(embed_dims=8, depths=(1, 1, 2, 1), drop_path_rate=0.0),
    FastVim: dict(embed_dims=16, depth=3, d_state=4, out_indices=(0, 2), drop_path_rate=0.0),
}
SMALLEST = {VMamba: 4, FastVim: 16}
DEPTH = {VMamba: 4, FastVim: 3}
VARIANTS = {
    VMamba: (dict(), dict(arch='tiny_v0'), dict(routes='cascade'), dict(arch='tiny_m2', d_state=4)),
    FastVim: (
        dict(),
        dict(pool='max', norm='RMS'),
        dict(pool=None, norm_after_scan=False),
        dict(pool=None, out_type='cls_token', out_indices=None),
    ),
}
TOLERANCE = {torch.float64: 1e-5, torch.bfloat16: 6e-2, torch.float16: 1e-2}


@pytest.fixture
def default_dtype():
    """Set the default dtype for a test."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


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


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('variant', range(4))
def test_default_dtype(backbone, variant, dtype, default_dtype):
    """Models are built and run in it; those of another dtype do not notice it."""
    torch.manual_seed(2)
    arguments = dict(TINY[backbone], **VARIANTS[backbone][variant])
    image = torch.randn(2, 3, 40, 70)
    model = backbone(**arguments)
    expected = model(image)
    default_dtype(dtype)
    for out, other in zip(model(image), expected, strict=True):
        assert torch.equal(out, other)
    native = backbone(**arguments)
    assert {p.dtype for p in native.parameters()} == {dtype}
    native.load_state_dict(model.state_dict())
    outs = native(image.to(dtype))
    for out, other in zip(outs, expected, strict=True):
        assert out.dtype == dtype
        assert_close('out', out.float(), other, TOLERANCE[dtype])
    sum(out.float().square().mean() for out in outs).backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in native.parameters())


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
def test_converted(backbone, dtype):
    model = backbone(**TINY[backbone]).eval()
    image = torch.randn(2, 3, 40, 70)
    expected = model(image)
    for out, other in zip(copy.deepcopy(model).to(dtype)(image.to(dtype)), expected, strict=True):
        assert out.dtype == dtype
        assert_close('out', out.float(), other, TOLERANCE[dtype])


@pytest.mark.parametrize('variant', range(4))
def test_meta_tensors(backbone, variant):
    """Shapes without numbers, forward and backward; and a default device does not reach into a model."""
    arguments = dict(TINY[backbone], **VARIANTS[backbone][variant])
    model = backbone(**arguments)
    with torch.device('meta'):
        shapes = backbone(**arguments)
        outs = shapes(torch.empty(2, 3, 40, 70))
        real = model(torch.zeros(2, 3, 40, 70, device='cpu'))
        sum(out.sum() for out in real).backward()
    assert all(out.is_meta for out in outs)
    assert [out.shape for out in outs] == [out.shape for out in real]
    assert all(out.isfinite().all() for out in real)
    sum(out.sum() for out in outs).backward()
    assert all(p.grad.is_meta for p in shapes.parameters())
    assert not any(p.grad.is_meta for p in model.parameters())


@pytest.mark.parametrize('change', ['copy', 'data', 'new parameter', 'functional call', 'vector', 'loaded'])
def test_changed_parameters_are_seen(backbone, change):
    """In inference, at a size that has been run before: nothing computed from parameters is kept."""
    model = backbone(**TINY[backbone]).eval()
    other = backbone(**TINY[backbone]).eval()
    with torch.no_grad():
        for p in other.parameters():  # what is initialised alike
            p.add_(0.1 * torch.rand_like(p))
        image = torch.randn(1, 3, 50, 70)
        model(image)
        state = dict(other.named_parameters())
        run = model
        if change == 'functional call':
            run = functools.partial(torch.func.functional_call, model, state)
        elif change == 'vector':
            vector = torch.nn.utils.parameters_to_vector(other.parameters())
            torch.nn.utils.vector_to_parameters(vector, model.parameters())
        elif change == 'loaded':
            model.load_state_dict(other.state_dict())
        for name, p in list(model.named_parameters()):
            if change == 'copy':
                p.copy_(state[name])
            elif change == 'data':
                p.data.copy_(state[name])
            elif change == 'new parameter':
                owner, _, key = name.rpartition('.')
                setattr(model.get_submodule(owner), key, torch.nn.Parameter(state[name].clone()))
        for out, expected in zip(run(image), other(image), strict=True):
            assert torch.equal(out, expected)


def test_forward_leaves_nothing_on_a_module(backbone):
    model = backbone(**TINY[backbone]).eval()

    def held():
        return {(name, key): repr(value) for name, m in model.named_modules() for key, value in vars(m).items()}

    before = held()
    with torch.no_grad():
        model(torch.randn(1, 3, 50, 70))
    model(torch.randn(1, 3, 50, 70))
    assert held() == before


@pytest.mark.parametrize(
    ('given', 'expected'),
    [(-1, (-1,)), ([0, -1], (0, -1)), ((-2, -1), (-2, -1)), (range(2), (0, 1)), (torch.tensor([0, 2]), (0, 2))],
    ids=str,
)
def test_out_indices_count_from_the_end_as_well(backbone, given, expected):
    model = backbone(**dict(TINY[backbone], out_indices=given)).eval()
    same = backbone(**dict(TINY[backbone], out_indices=tuple(i % DEPTH[backbone] for i in expected))).eval()
    assert model.out_indices == same.out_indices
    same.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 32, 32)
    for out, other in zip(model(image), same(image), strict=True):
        assert torch.equal(out, other)


@pytest.mark.parametrize('given', [(-1, 0), (0, -9), (0.0,), 'all', None, {0: 1}, (1, 1), ('0',)], ids=str)
def test_bad_out_indices(backbone, given):
    with pytest.raises(
        ValueError, match=r'out_indices=.*; expected ascending numbers from 0 to \d+, or from -\d+ to -1'
    ):
        backbone(**dict(TINY[backbone], out_indices=given))


@pytest.mark.parametrize('kind', [dict, ConfigDict])
def test_architecture_as_a_dict(backbone, kind):
    """Fields that it lacks are those of the architecture that is the default; single arguments go before it."""
    fields = {key: value for key, value in TINY[backbone].items() if key not in ('out_indices', 'drop_path_rate')}
    rest = {key: value for key, value in TINY[backbone].items() if key not in fields}
    model = ROOT_MODELS.build(dict(type=backbone.__name__, arch=kind(fields, drop_path_rate=0.3), **rest))
    expected = backbone(**TINY[backbone])
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in expected.state_dict().items()
    }
    wider = backbone(arch=kind(fields), **dict(rest, embed_dims=32))
    assert wider.num_features[0] == 32
    dropping = backbone(arch=kind(fields, drop_path_rate=0.3), out_indices=-1)
    assert max(m.rate for m in dropping.modules() if isinstance(m, DropPath)) > 0
    kept = backbone(arch=kind(fields, drop_path_rate=0.3), **rest)
    assert max(m.rate for m in kept.modules() if isinstance(m, DropPath)) == 0


@pytest.mark.parametrize(
    ('arch', 'error', 'words'),
    [
        (dict(embed_dim=8), TypeError, "arch: 'embed_dim' is no field of an architecture; did you mean 'embed_dims'"),
        (['tiny'], ValueError, r"arch=\['tiny'\] is unknown; expected one of .*, or a dict of fields such as"),
        (None, ValueError, 'arch=None is unknown'),
        ('giant', ValueError, "arch='giant' is unknown"),
    ],
    ids=str,
)
def test_bad_architectures(backbone, arch, error, words):
    with pytest.raises(error, match=words):
        backbone(arch=arch)


def test_choices_that_are_no_names_are_refused_in_words(backbone):
    for argument in ('backend', *(('routes', 'ssm_init') if backbone is VMamba else ('norm', 'scan_path'))):
        with pytest.raises(ValueError, match=f'{argument}=.*type.* is unknown; expected one of'):
            backbone(**dict(TINY[backbone], **{argument: dict(type='LN')}))
