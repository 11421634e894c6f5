"""Weights into our backbones by `init_cfg`, and by every loader that ends in a state dict."""

import copy

import golden_runs
import pytest
import torch
from golden_runs import parameters_of
from mmengine.config import ConfigDict
from mmengine.model import ExponentialMovingAverage, PretrainedInit
from mmengine.runner.checkpoint import load_checkpoint
from mmvmamba.kernels.testing import load_golden
from published_files import DATA, Dangerous, fastvim_golden, old_names, with_class_token
from torch import nn

from mmvmamba.checkpoints import CheckpointError


@pytest.fixture(scope='module')
def golden():
    """Parameters of a small vanilla model, and the arguments that it is built from."""
    tensors, metadata = load_golden(DATA / 'vmamba_v0.safetensors')
    return parameters_of(tensors), metadata['official_kwargs']


@pytest.mark.parametrize(
    'wrap', [lambda entry: entry, lambda entry: [entry], ConfigDict], ids=['dict', 'list', 'config']
)
@pytest.mark.parametrize(
    'type_', ['Pretrained', 'mmengine.Pretrained', PretrainedInit, 'mmengine.model.PretrainedInit']
)
def test_init_cfg_loads_whatever_way_its_type_is_written(type_, wrap, golden, tmp_path):
    parameters, kwargs = golden
    torch.save({'model': old_names(parameters)}, tmp_path / 'c.pth')
    model = golden_runs.vmamba(kwargs, init_cfg=wrap(dict(type=type_, checkpoint=str(tmp_path / 'c.pth'))))
    model.init_weights()
    assert all(torch.equal(value, parameters[name]) for name, value in model.state_dict().items())


def test_init_cfg_takes_keys_and_refuses_others(golden, tmp_path):
    parameters, kwargs = golden
    content = {'a': {f'encoder.{k}': v for k, v in parameters.items()}, 'b': parameters}
    torch.save(content, tmp_path / 'c.pth')

    def load(**keys):
        model = golden_runs.vmamba(kwargs, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'c.pth')) | keys)
        model.init_weights()
        return model

    for keys in (dict(container='a', prefix='encoder.'), dict(container='b', map_location='cpu')):
        assert torch.equal(load(**keys).outnorm0.weight, parameters['outnorm0.weight'])
    for keys in (dict(map_location='cuda'), dict(strict=False, container='b')):
        with pytest.raises(
            CheckpointError, match=rf"not understood: \['{next(iter(keys))}'\]; expected type, checkpoint"
        ):
            load(**keys)
    with pytest.raises(CheckpointError, match='names no checkpoint'):
        load(checkpoint=None)


def test_init_cfg_may_trust(golden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parameters, kwargs = golden
    torch.save({'model': parameters, 'hook': Dangerous()}, 'published.pth')
    model = golden_runs.vmamba(kwargs, init_cfg=dict(type='Pretrained', checkpoint='published.pth', trust=True))
    model.init_weights()
    assert torch.equal(model.outnorm0.weight, parameters['outnorm0.weight'])


def test_init_cfg_may_be_a_list(golden, tmp_path):
    parameters, kwargs = golden
    torch.save({'model': parameters}, tmp_path / 'published.pth')
    fill = dict(type='Constant', layer='LayerNorm', val=3.0)
    model = golden_runs.vmamba(kwargs, init_cfg=[fill])
    model.init_weights()
    assert (model.outnorm0.weight == 3).all()
    model = golden_runs.vmamba(
        kwargs, init_cfg=[dict(type='Pretrained', checkpoint=str(tmp_path / 'published.pth')), fill]
    )
    model.init_weights()
    assert torch.equal(model.outnorm0.weight, parameters['outnorm0.weight'])
    with pytest.raises(TypeError, match=r"VMamba: init_cfg=\['Pretrained'\]; expected a dict such as"):
        golden_runs.vmamba(kwargs, init_cfg=['Pretrained']).init_weights()


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.neck = backbone, nn.Linear(2, 2)


@pytest.fixture
def model(golden):
    torch.manual_seed(1)
    return Detector(golden_runs.vmamba(golden[1]))


def mmengines(model, state_dict, folder):
    torch.save({'state_dict': state_dict}, folder / 'c.pth')
    load_checkpoint(model, str(folder / 'c.pth'))


def pytorchs(model, state_dict, folder):
    model.load_state_dict(state_dict, strict=False)


LOADERS = pytest.mark.parametrize('load', [mmengines, pytorchs], ids=['mmengine', 'torch'])


@LOADERS
def test_any_loader_translates(load, model, golden, tmp_path):
    parameters, _ = golden
    load(model, {f'backbone.{name}': value for name, value in old_names(parameters).items()}, tmp_path)
    assert all(torch.equal(value, parameters[name]) for name, value in model.backbone.state_dict().items())
    tensors, _, build = fastvim_golden('vim')
    model = Detector(build())
    load(model, {f'backbone.{name}': value for name, value in with_class_token(tensors).items()}, tmp_path)
    assert all(torch.equal(value, tensors[name]) for name, value in model.backbone.state_dict().items())


@LOADERS
@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda p: {k: v for k, v in p.items() if not k.endswith('1.blocks.0.op.Ds')}, r'1 missing:\n  layers\.1\.bl'),
        (lambda p: p | {'backbone.more.weight': torch.ones(1)}, r'1 unexpected:\n  more\.weight'),
        (lambda p: {k: v.new_ones(*v.shape, 2) for k, v in p.items()}, r'of another shape:\n  patch_embed\.0\.weight'),
        (lambda p: {k.removeprefix('backbone.'): v for k, v in p.items()}, "nothing for VMamba under 'backbone.'"),
        (lambda p: {f'model.{k}': v for k, v in p.items()}, r'nobody takes its \[.model\.backbone\.'),
        (lambda p: {'model': torch.ones(1)}, r"nobody takes its \['model'\]"),
    ],
    ids=['missing', 'unexpected', 'shapes', 'bare', 'prefix', 'container'],
)
def test_any_loader_refuses_what_does_not_fit(change, words, load, model, golden, tmp_path):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=words):
        load(model, change({f'backbone.{name}': value for name, value in golden[0].items()}), tmp_path)
    backbone = {name: value for name, value in model.state_dict().items() if name.startswith('backbone.')}
    assert all(torch.equal(value, before[name]) for name, value in backbone.items())


def test_pytorchs_strictness_stays_what_it_is(golden):
    """Names that are dropped by right, and output norms that a classifier lacks, are still reported."""
    parameters, kwargs = golden
    backbone = golden_runs.vmamba(kwargs)
    classifier = {name: value for name, value in parameters.items() if not name.startswith('outnorm')}
    classifier['classifier.head.bias'] = torch.ones(2)
    with pytest.raises(RuntimeError, match=r'(?s)Missing.*outnorm0\.weight.*Unexpected.*classifier\.head\.bias'):
        backbone.load_state_dict(classifier)
    result = backbone.load_state_dict(classifier, strict=False)
    assert result.unexpected_keys == ['classifier.head.bias']
    assert all(name.startswith('outnorm') for name in result.missing_keys)


def test_other_parts_are_loaded_alone(model):
    before = model.backbone.outnorm0.weight.clone()
    result = model.load_state_dict({'neck.weight': torch.ones(2, 2)}, strict=False)
    assert 'neck.bias' in result.missing_keys
    assert torch.equal(model.neck.weight, torch.ones(2, 2))
    assert torch.equal(model.backbone.outnorm0.weight, before)
    model.backbone.layers[0].load_state_dict({}, strict=False)


def test_averaged_and_copied_models_load(model, golden):
    averaged = ExponentialMovingAverage(model)
    averaged.load_state_dict(copy.deepcopy(averaged.state_dict()))
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(twin.backbone.outnorm0.weight, model.backbone.outnorm0.weight)
