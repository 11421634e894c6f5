"""Published weights by name, in every container and naming of their authors, through every road that loads weights."""

import argparse
import re
import sys
import types

import golden_runs
import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from mmvmamba.kernels.testing import load_golden
from published_files import DATA, Dangerous, as_convolutions, old_names, with_class_token
from safetensors.torch import save_file
from torch import nn

from mmvmamba import checkpoints
from mmvmamba.checkpoints import CheckpointError, published


@pytest.fixture(autouse=True)
def folder(tmp_path, cache, monkeypatch):
    """Where published files lie; a network would be an error."""
    path = tmp_path / 'published'
    path.mkdir()
    monkeypatch.setenv('MMVMAMBA_WEIGHTS', str(path))
    monkeypatch.setenv('MMVMAMBA_OFFLINE', '1')
    return path


def put(folder, name, content):
    """Save content as the file that a name means; returns what users write."""
    torch.save(content, folder / published()[name].file)
    return f'mmvmamba://{name}'


def golden(name):
    tensors, metadata = load_golden(DATA / f'{name}.safetensors')
    build = golden_runs.vmamba if name.startswith('vmamba') else golden_runs.fastvim
    return golden_runs.parameters_of(tensors), lambda **options: build(metadata['official_kwargs'], **options)


def classifier(parameters):
    """VMamba's: without output norms, with a head."""
    body = {name: value for name, value in parameters.items() if not name.startswith('outnorm')}
    return body | {'classifier.norm.weight': torch.ones(4), 'classifier.head.weight': torch.ones(10, 4)}


def fastvim_classifier(parameters):
    """RMSNorm, which has no bias; no output norms; a head."""
    body = {k: v for k, v in parameters.items() if not re.match(r'outnorm|layers\.\d+\.norm\.bias', k)}
    return body | {'norm_f.weight': torch.ones(4), 'head.weight': torch.ones(10, 4), 'head.bias': torch.ones(10)}


def vim_classifier(parameters):
    """With a class token and its position in the middle, and, as its authors build it, no norm behind the scan."""
    body = with_class_token(fastvim_classifier(parameters))
    return {name: value for name, value in body.items() if '.layernorm.' not in name}


def lightning(parameters):
    """As FastVim's supervised trainings save: prefixed, an averaged copy under `ema.`, and the averaged ones bare."""
    other = {name: value + 1 for name, value in parameters.items()}
    prefixed = {f'backbone.{name}': value for name, value in other.items()}
    copied = {f'ema.module.{name}': value for name, value in parameters.items()}
    return {'state_dict': prefixed | copied, 'state_dict_ema': parameters, 'epoch': 300}


def with_settings(content):
    """Beside the parameters a pickled yacs node and a namespace, whose packages need not be here."""
    yacs, config = types.ModuleType('yacs'), types.ModuleType('yacs.config')
    config.CfgNode = type('CfgNode', (dict,), {'__module__': 'yacs.config'})
    sys.modules.update({'yacs': yacs, 'yacs.config': config})
    return content | {'config': config.CfgNode(MODEL='vssm'), 'args': argparse.Namespace(lr=1e-3), 'max_accuracy': 82.6}


BACKBONES = {
    'VMamba classifier': ('vmamba_s1', 'vmamba_tiny_s1l8', lambda p: {'model': classifier(p), 'epoch': 264}),
    'convolutions': ('vmamba_s1', 'vmamba_tiny_s1l8', lambda p: {'model': as_convolutions(classifier(p))}),
    'settings': ('vmamba_s2', 'vmamba_tiny_s2l5', lambda p: with_settings({'model': classifier(p)})),
    'vanilla': ('vmamba_v0', 'vmamba_tiny_v0', lambda p: {'model': classifier(p)}),
    'old names': ('vmamba_v0', 'vmamba_small_v0', lambda p: {'model': old_names(classifier(p))}),
    'averaged, wrapped': (
        'vmamba_s1',
        'vmamba_base_s2l15',
        lambda p: {'model_ema': {f'module.{k}': v for k, v in classifier(p).items()}},
    ),
    'FastVim': ('fastvim', 'fastvim_tiny', lambda p: lightning(fastvim_classifier(p))),
    'FastVim without averages': (
        'fastvim',
        'fastvim_base',
        lambda p: {'state_dict': {f'backbone.{k}': v for k, v in fastvim_classifier(p).items()}},
    ),
    'Vim': ('vim', 'vim_small', lambda p: {'model': vim_classifier(p), 'epoch': 299}),
}


def same(model, parameters, prefix=''):
    """Parameters equal where a classifier has them; what it has not is as at the start: norms of 1 and 0."""
    for name, value in model.state_dict().items():
        own = name.removeprefix(prefix)
        fresh = own.startswith('outnorm') or '.layernorm.' in own or re.fullmatch(r'layers\.\d+\.norm\.bias', own)
        expected = parameters[own]
        if fresh and not torch.equal(value, expected):
            expected = torch.full_like(value, float(own.endswith('weight')))
        assert torch.equal(value, expected), name


@pytest.mark.parametrize('road', ['load', 'init_cfg', 'converted', 'address'])
@pytest.mark.parametrize('kind', BACKBONES)
def test_backbones(kind, road, folder):
    file, name, wrap = BACKBONES[kind]
    parameters, build = golden(file)
    source = put(folder, name, wrap(parameters))
    for module in ('yacs', 'yacs.config'):
        sys.modules.pop(module, None)
    if road == 'address':
        source = published()[name].address
    if road == 'converted':  # what tools/convert_checkpoint.py writes, under the name of the weights
        first = build()
        checkpoints.load(source, first)
        (folder / published()[name].file).unlink()
        save_file(first.state_dict(), folder / f'{name}.safetensors')
    if road == 'init_cfg':
        model = build(init_cfg=dict(type='Pretrained', checkpoint=source))
        model.init_weights()
    else:
        model = build()
        checkpoints.load(source, model)
    assert not any(module in sys.modules for module in ('yacs', 'yacs.config'))
    same(model, parameters)


class Detector(BaseModule):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.neck, self.bbox_head = backbone, nn.Linear(3, 2), nn.Linear(2, 2)


WHOLE = {
    'detector': ('vmamba_s1', 'maskrcnn_vmamba_t', lambda p: p),
    'detector, convolutions': ('vmamba_s1', 'maskrcnn_vmamba_b', as_convolutions),
    'old names': ('vmamba_v0', 'upernet_vmamba_v0_t', old_names),
    'FastVim': ('fastvim', 'cascade_fastvim_t', lambda p: p),
    'another schedule': ('vmamba_s2', 'maskrcnn_vmamba_t_s2l5_3x', lambda p: p),
}


@pytest.mark.parametrize('road', ['load', "mmengine's loader", 'its backbone alone'])
@pytest.mark.parametrize('kind', WHOLE)
def test_whole_models(kind, road, folder):
    file, name, wrap = WHOLE[kind]
    parameters, build = golden(file)
    rest = {'neck.weight': torch.ones(2, 3), 'neck.bias': torch.zeros(2)}
    rest |= {'bbox_head.weight': torch.ones(2, 2), 'bbox_head.bias': torch.zeros(2)}
    whole = {f'backbone.{name}': value for name, value in wrap(parameters).items()} | rest
    source = put(folder, name, {'meta': {'epoch': 12}, 'state_dict': whole, 'message_hub': {}})
    if road == 'its backbone alone':
        model = build()
        checkpoints.load(source, model)
        same(model, parameters)
        return
    model = Detector(build())
    checkpoints.load(source, model) if road == 'load' else load_checkpoint(model, source)
    same(model, {f'backbone.{name}': value for name, value in parameters.items()} | rest)


def test_a_name_that_does_not_fit_the_model_is_refused_on_every_road(folder):
    parameters, _ = golden('vmamba_s2')
    _, build = golden('vmamba_s1')
    whole = {f'backbone.{name}': value for name, value in parameters.items()}
    source = put(folder, 'maskrcnn_vmamba_t', {'state_dict': whole})
    for load in (checkpoints.load, lambda source, model: load_checkpoint(model, source)):
        model = Detector(build())
        before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
        with pytest.raises(CheckpointError):
            load(source, model)
        assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


def test_a_bare_name_must_fit_its_config_whole(folder, monkeypatch):
    """An inferencer takes the address out of the metafile and loads loosely; the heads are held to the config here."""
    name = 'upernet_vmamba_t'
    parameters, build = golden('vmamba_s1')
    monkeypatch.setattr(checkpoints.scheme, '_model_of', lambda config: Detector(build()))
    rest = {'neck.weight': torch.ones(2, 3), 'neck.bias': torch.zeros(2), 'bbox_head.weight': torch.ones(2, 2)}
    whole = {f'backbone.{key}': value for key, value in parameters.items()} | rest
    put(folder, name, {'state_dict': whole | {'bbox_head.bias': torch.zeros(2)}})
    found = CheckpointLoader.load_checkpoint(published()[name].address)['state_dict']
    assert found.keys() == Detector(build()).state_dict().keys()
    put(folder, name, {'state_dict': whole})
    with pytest.raises(CheckpointError, match=r'1 missing:\n  bbox_head\.bias'):
        CheckpointLoader.load_checkpoint(published()[name].address)


def test_mmengine_gets_classes_where_the_file_names_none(folder):
    import mmdet.datasets  # noqa: F401  the toolbox that knows them

    source = put(folder, 'maskrcnn_vmamba_t', {'state_dict': {'neck.weight': torch.ones(1)}})
    found = CheckpointLoader.load_checkpoint(source, map_location='cpu')
    assert len(found['meta']['dataset_meta']['classes']) == 80
    own = {'dataset_meta': {'classes': ('cell',)}}
    put(folder, 'maskrcnn_vmamba_t', {'state_dict': {'neck.weight': torch.ones(1)}, 'meta': own})
    assert CheckpointLoader.load_checkpoint(source)['meta'] == own


def test_code_in_a_published_file_is_refused(folder):
    source = put(folder, 'maskrcnn_vmamba_t', {'state_dict': {'a': torch.ones(1)}, 'hook': Dangerous()})
    for name in (source, published()['maskrcnn_vmamba_t'].address):  # the latter as an inferencer takes it
        with pytest.raises(CheckpointError, match='could run code and are refused'):
            CheckpointLoader.load_checkpoint(name)


@pytest.mark.parametrize('name', ['vmamba_tiny', 'maskrcnn_vmamba', '', 'qqqq'])
def test_unknown_names_suggest_known_ones(name):
    with pytest.raises(CheckpointError, match=r'nobody publishes weights under this name') as caught:
        checkpoints.read(f'mmvmamba://{name}')
    assert 'vmamba_tiny_s1l8' in str(caught.value) or 'maskrcnn_vmamba_t' in str(caught.value)


def test_an_installation_without_the_metafile_says_so(monkeypatch):
    published.cache_clear()
    monkeypatch.setitem(checkpoints.find.__globals__, 'HOME', None)
    with pytest.raises(CheckpointError, match=r'names need configs/metafile\.yml'):
        checkpoints.locate('mmvmamba://vmamba_tiny_s1l8')
    checkpoints.scheme.register()
    published.cache_clear()
