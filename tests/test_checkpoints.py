"""Reading checkpoints: nothing in them runs, nothing that does not fit is used."""

import argparse
import functools
import logging
import os
import pickle
import re
import sys
import types
from pathlib import Path

import golden_runs
import pytest
import torch
from golden_runs import parameters_of
from mmvmamba.kernels.testing import load_golden
from safetensors.torch import save_file
from torch import nn

from mmvmamba import checkpoints
from mmvmamba.models import VMamba
from mmvmamba.models.backbones.vmamba import ARCHS

DATA = Path(__file__).parent / 'data'

STATE = {'weight': torch.ones(2, 3), 'bias': torch.zeros(2)}


@pytest.mark.parametrize('wrap', [dict, lambda s: {'state_dict': s}, lambda s: {'model': s, 'epoch': 3}])
def test_reads_bare_and_contained(wrap, tmp_path):
    torch.save(wrap(STATE), tmp_path / 'c.pth')
    read = checkpoints.read(tmp_path / 'c.pth')
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[k], STATE[k]) for k in STATE)


def test_reads_safetensors(tmp_path):
    save_file(STATE, tmp_path / 'c.safetensors')
    assert torch.equal(checkpoints.read(tmp_path / 'c.safetensors')['weight'], STATE['weight'])


class Dangerous:
    def __reduce__(self):
        return os.system, ('touch ran',)


def test_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': STATE, 'meta': Dangerous()}, 'c.pth')
    with pytest.raises(checkpoints.CheckpointError, match=r'refused: .* GLOBAL \w+\.system .*--trust-checkpoint'):
        checkpoints.read('c.pth')
    (tmp_path / 'd.pth').write_bytes(pickle.dumps(Dangerous()))
    with pytest.raises(checkpoints.CheckpointError):
        checkpoints.read('d.pth')
    assert not (tmp_path / 'ran').exists()


def test_trusted_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': STATE, 'meta': Dangerous()}, 'c.pth')
    model = nn.Linear(3, 2)
    checkpoints.load('c.pth', model, trust=True)
    assert torch.equal(model.weight, STATE['weight'])
    assert (tmp_path / 'ran').exists(), 'which is what the flag warns of'


def test_settings_are_read_without_the_package_they_come_from(tmp_path, monkeypatch):
    """As the authors of VMamba save them, beside the parameters; here is no yacs."""
    yacs, config = types.ModuleType('yacs'), types.ModuleType('yacs.config')
    config.CfgNode = type('CfgNode', (dict,), {'__module__': 'yacs.config'})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'yacs', yacs)
        patch.setitem(sys.modules, 'yacs.config', config)
        settings = config.CfgNode(MODEL=config.CfgNode(NAME='vssm1_tiny_0230s'))
        settings.__dict__['__immutable__'] = True
        content = {'model': STATE, 'config': settings, 'args': argparse.Namespace(lr=1e-3), 'max_accuracy': 82.6}
        torch.save(content, tmp_path / 'c.pth')
    read = checkpoints.read_file(tmp_path / 'c.pth')
    assert 'yacs' not in sys.modules
    assert read['config'] == {'MODEL': {'NAME': 'vssm1_tiny_0230s'}}
    assert read['args'].lr == 1e-3
    assert torch.equal(read['model']['weight'], STATE['weight'])
    monkeypatch.setitem(sys.modules, 'yacs', None)
    with pytest.raises(checkpoints.CheckpointError, match=r'not installed here.*yacs'):
        checkpoints.read(tmp_path / 'c.pth', trust=True)


@pytest.mark.parametrize('trust', [False, True])
@pytest.mark.parametrize('name', ['c.pth', 'c.safetensors'])
def test_truncated_file(name, trust, tmp_path):
    whole = tmp_path / f'whole_{name}'
    (torch.save if name.endswith('pth') else save_file)(STATE, whole)
    (tmp_path / name).write_bytes(whole.read_bytes()[:-60])
    with pytest.raises(checkpoints.CheckpointError, match=f'{name} is truncated or damaged'):
        checkpoints.read(tmp_path / name, trust=trust)


def test_missing_file_and_no_parameters(tmp_path):
    (tmp_path / 'empty.pth').touch()
    with pytest.raises(checkpoints.CheckpointError, match=r'empty\.pth is truncated or damaged'):
        checkpoints.read(tmp_path / 'empty.pth')
    with pytest.raises(FileNotFoundError, match=r'gone\.pth does not exist'):
        checkpoints.read(tmp_path / 'gone.pth')
    (tmp_path / 'epoch_2.pth').mkdir()
    with pytest.raises(checkpoints.CheckpointError, match=r'is a folder; .*zero_to_fp32\.py .* OUT -t epoch_2\.pth'):
        checkpoints.read(tmp_path / 'epoch_2.pth')
    torch.save({'epoch': 3}, tmp_path / 'c.pth')
    with pytest.raises(checkpoints.CheckpointError, match=r'holds no parameters.*epoch: int'):
        checkpoints.read(tmp_path / 'c.pth')


def test_mismatches_are_listed_up_to_twenty():
    model = nn.ModuleList([nn.Linear(3, 2) for _ in range(15)])
    with pytest.raises(checkpoints.CheckpointError) as caught:
        checkpoints.load({'0.weight': torch.ones(4, 3), 'other': torch.ones(1)}, model)
    text = str(caught.value)
    assert '29 missing:' in text
    assert '... and 9 more' in text
    assert '1 unexpected:\n  other (1,)' in text
    assert '0.weight: checkpoint (4, 3), model (2, 3)' in text
    checkpoints.load(model.state_dict(), model)


@pytest.fixture(scope='module')
def golden():
    """Published names and values of a small current and a small vanilla model, their inputs and outputs."""
    found = {}
    for name in ('s1', 'v0'):
        tensors, metadata = load_golden(DATA / f'vmamba_{name}.safetensors')
        found[name] = parameters_of(tensors), tensors, metadata['official_kwargs']
    return found


def old_names(parameters):
    """How the first vanilla files were named."""
    names = [
        (r'^patch_embed\.0\.', 'patch_embed.proj.'),
        (r'^patch_embed\.2\.', 'patch_embed.norm.'),
        (r'(blocks\.\d+)\.norm\.', r'\1.ln_1.'),
        (r'\.op\.', '.self_attention.'),
    ]
    renamed = {}
    for name, value in parameters.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def as_convolutions(parameters):
    """Linears as 1 x 1 convolutions."""
    linear = ('in_proj.weight', 'out_proj.weight', 'fc1.weight', 'fc2.weight')
    return {k: v[..., None, None] if k.endswith(linear) else v for k, v in parameters.items()}


def with_heads(parameters, *heads):
    """A whole detector's or segmentor's file."""
    own = {f'backbone.{k}': v for k, v in parameters.items()}
    return own | {f'{head}.conv.weight': torch.ones(2) for head in heads}


VARIANTS = {
    'bare': ('s1', lambda p: p),
    'model': ('s1', lambda p: {'model': p, 'epoch': 3}),
    'state_dict': ('s1', lambda p: {'state_dict': p}),
    'not averaged, as published': ('s1', lambda p: {'model': p, 'model_ema': {k: v + 1 for k, v in p.items()}}),
    'averaged alone': ('s1', lambda p: {'model_ema': p}),
    'state_dict_ema': ('v0', lambda p: {'state_dict': {k: v * 0 for k, v in p.items()}, 'state_dict_ema': p}),
    'module prefix': ('s1', lambda p: {f'module.{k}': v for k, v in p.items()}),
    'detector': ('s1', lambda p: {'state_dict': with_heads(p, 'neck', 'rpn_head', 'roi_head'), 'meta': {'epoch': 12}}),
    'segmentor': ('v0', lambda p: {'state_dict': with_heads(p, 'decode_head', 'auxiliary_head')}),
    'detector, convolutions': ('s1', lambda p: {'state_dict': with_heads(as_convolutions(p), 'neck')}),
    'averaged detector': ('s1', lambda p: {'state_dict': {}, 'state_dict_ema': with_heads(p, 'neck')}),
    'both prefixes': ('s1', lambda p: {f'module.backbone.{k}': v for k, v in p.items()}),
    'convolutions': ('s1', as_convolutions),
    'old names': ('v0', old_names),
    'old names as convolutions': ('v0', lambda p: {'model': old_names(as_convolutions(p))}),
}


@pytest.mark.parametrize('how', ['file', 'dict', 'init_cfg'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_published_variants_give_golden_outputs(variant, how, golden, tmp_path):
    name, wrap = VARIANTS[variant]
    parameters, tensors, kwargs = golden[name]
    content = wrap(parameters)
    torch.save(content, tmp_path / 'file.pth')
    if how == 'init_cfg':
        model = golden_runs.vmamba(kwargs, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth')))
        model.init_weights()
        model.init_weights()  # what was loaded stays
    else:
        model = golden_runs.vmamba(kwargs)
        checkpoints.load(tmp_path / 'file.pth' if how == 'file' else content, model)
    assert all(torch.equal(value, parameters[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        outs = model.eval()(tensors['input'])
    for i, out in enumerate(outs):
        torch.testing.assert_close(out, tensors[f'out.{i}'], atol=1e-5, rtol=0)


def test_classifier_drops_its_head_and_leaves_output_norms_fresh(golden, caplog):
    parameters, _, kwargs = golden['s1']
    classifier = {k: v for k, v in parameters.items() if not k.startswith('outnorm')}
    classifier |= {'classifier.norm.weight': torch.ones(8), 'classifier.head.weight': torch.ones(10, 8)}
    model = golden_runs.vmamba(kwargs)
    with caplog.at_level(logging.INFO, logger='mmvmamba'):
        report = checkpoints.load({'model_ema': classifier}, model)
    assert report.container == 'model_ema'
    assert report.dropped == ['classifier.norm.weight', 'classifier.head.weight']
    assert len(report.fresh) == 2 * len(kwargs['depths'])
    assert all(name.startswith('outnorm') for name in report.fresh)
    assert "(entry 'model_ema')" in caplog.text
    assert 'left at their initial values: outnorm0.weight' in caplog.text


def test_a_model_with_fewer_outputs_takes_what_it_has(golden):
    parameters, tensors, kwargs = golden['s1']
    model = golden_runs.vmamba(kwargs, out_indices=(1,))
    report = checkpoints.load(parameters, model)
    assert report.fresh == []
    assert {name.split('.')[0] for name in report.dropped} == {'layers', 'outnorm0', 'outnorm2', 'outnorm3'}
    (out,) = model.eval()(tensors['input'])
    torch.testing.assert_close(out, tensors['out.1'], atol=1e-5, rtol=0)


def test_wrong_architecture_is_named():
    with torch.device('meta'):
        weights, model = VMamba('tiny_s2l5').state_dict(), VMamba('tiny_s1l8')
    weights = {k: torch.zeros(v.shape) for k, v in weights.items()}
    with pytest.raises(
        checkpoints.CheckpointError, match='look like VMamba tiny_s2l5 weights; this is VMamba tiny_s1l8'
    ):
        checkpoints.load(weights, model)


@pytest.mark.parametrize('arch', ARCHS)
def test_every_published_architecture_is_recognised(arch):
    with torch.device('meta'):
        assert checkpoints.architecture(VMamba(arch).state_dict()) == f'VMamba {arch}'


@pytest.mark.parametrize('damage', ['missing', 'unexpected', 'nan'])
def test_anything_else_is_refused(damage, golden):
    parameters, _, kwargs = golden['s1']
    parameters = dict(parameters)
    name = 'layers.1.blocks.0.op.Ds'
    if damage == 'missing':
        del parameters[name]
    elif damage == 'unexpected':
        parameters['layers.0.blocks.0.op.more'] = torch.ones(1)
    else:
        parameters[name] = parameters[name].clone().fill_(float('nan'))
    words = {'missing': rf'1 missing:\n  {name}', 'unexpected': r'op\.more', 'nan': rf"NaN or infinite.*'{name}'"}
    model = golden_runs.vmamba(kwargs)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(checkpoints.CheckpointError, match=words[damage]):
        checkpoints.load(parameters, model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), 'nothing is half loaded'


def test_a_whole_detector_is_loaded_strictly(golden):
    parameters, _, kwargs = golden['s1']
    detector = nn.ModuleDict({'backbone': golden_runs.vmamba(kwargs), 'neck': nn.Linear(2, 2)})
    content = {f'backbone.{k}': v for k, v in as_convolutions(parameters).items()}
    content |= {'neck.weight': torch.ones(2, 2), 'neck.bias': torch.zeros(2)}
    holder = nn.Module()
    holder.backbone, holder.neck = detector['backbone'], detector['neck']
    checkpoints.load({'state_dict': content}, holder)
    assert torch.equal(holder.neck.weight, torch.ones(2, 2))
    assert torch.equal(holder.backbone.outnorm0.weight, parameters['outnorm0.weight'])
    del content['neck.bias'], content['backbone.outnorm0.weight']
    with pytest.raises(checkpoints.CheckpointError, match=r'(?s)2 missing:.*backbone\.outnorm0\.weight.*neck\.bias'):
        checkpoints.load({'state_dict': content}, holder)


@pytest.mark.parametrize('how', ['file', 'init_cfg'])
@pytest.mark.parametrize('damage', ['architecture', 'truncated', 'code', 'nan'])
def test_files_that_do_not_fit_or_cannot_be_read(damage, how, golden, tmp_path):
    """Through either door, the file named, the model as it was."""
    parameters, _, kwargs = golden['s1']
    content, words = (
        {'model': dict(parameters)},
        {
            'architecture': r'depths=\(.*weights; this is',
            'truncated': 'truncated or damaged',
            'code': 'could run code and are refused',
            'nan': r"NaN or infinite in 1 tensors: \['outnorm1.weight'\]",
        }[damage],
    )
    if damage == 'code':
        content['hook'] = Dangerous()
    if damage == 'nan':
        content['model']['outnorm1.weight'] = torch.full_like(parameters['outnorm1.weight'], float('inf'))
    path = tmp_path / 'published.pth'
    torch.save(content, path)
    if damage == 'truncated':
        path.write_bytes(path.read_bytes()[:-200])
    if damage == 'architecture':
        kwargs = kwargs | {'depths': [depth + 1 for depth in kwargs['depths']]}
    model = golden_runs.vmamba(kwargs, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(checkpoints.CheckpointError, match=words) as caught:
        model.init_weights() if how == 'init_cfg' else checkpoints.load(path, model)
    assert 'published.pth' in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_init_cfg_may_trust(golden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parameters, _, kwargs = golden['s1']
    torch.save({'model': parameters, 'hook': Dangerous()}, 'published.pth')
    model = golden_runs.vmamba(kwargs, init_cfg=dict(type='Pretrained', checkpoint='published.pth', trust=True))
    model.init_weights()
    assert torch.equal(model.outnorm0.weight, parameters['outnorm0.weight'])


def test_init_cfg_may_be_a_list(golden, tmp_path):
    parameters, _, kwargs = golden['s1']
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


def fastvim_golden(name):
    """Golden tensors of a small FastVim or Vim, its parameters, and a builder of models that they fit."""
    tensors, metadata = load_golden(DATA / f'{name}.safetensors')
    return parameters_of(tensors), tensors, functools.partial(golden_runs.fastvim, metadata['official_kwargs'])


@pytest.fixture(scope='module')
def fastvim():
    return fastvim_golden('fastvim')


def test_fastvim_classifier_with_rms_norm_and_averaged_weights(fastvim):
    parameters, _, build = fastvim
    plain = {f'backbone.{k}': v for k, v in parameters.items() if not re.match(r'outnorm|layers\.\d+\.norm\.bias', k)}
    plain |= {
        'backbone.norm_f.weight': torch.ones(4),
        'backbone.head.weight': torch.ones(4),
        'head.bias': torch.ones(4),
    }
    model = build()
    report = checkpoints.load({'state_dict': {k: v * 0 for k, v in plain.items()}, 'state_dict_ema': plain}, model)
    assert report.container == 'state_dict_ema'
    assert set(report.dropped) == {'norm_f.weight', 'head.weight', 'head.bias'}
    assert all(
        torch.equal(
            value, torch.zeros_like(value) if re.fullmatch(r'layers\.\d+\.norm\.bias', name) else parameters[name]
        )
        for name, value in model.state_dict().items()
        if not name.startswith('outnorm')
    )


FASTVIM_VARIANTS = {
    'bare': lambda p: p,
    'segmentor': lambda p: {'state_dict': with_heads(p, 'decode_head')},
    'module prefix': lambda p: {'state_dict': {f'module.{k}': v for k, v in p.items()}},
    'averaged weights win': lambda p: {'state_dict': {k: v + 1 for k, v in p.items()}, 'state_dict_ema': p},
    'linears as convolutions': lambda p: {
        k: v[..., None, None] if k.endswith(('in_proj.weight', 'out_proj.weight')) else v for k, v in p.items()
    },
    'class token': lambda p: with_class_token(p),
}


def with_class_token(parameters):
    """Vim's, with its position in the middle."""
    position = parameters['pos_embed']
    middle = position.shape[1] // 2
    token = torch.full_like(position[:, :1], 9.0)
    position = torch.cat([position[:, :middle], token, position[:, middle:]], dim=1)
    return parameters | {'cls_token': token, 'pos_embed': position}


@pytest.mark.parametrize('variant', FASTVIM_VARIANTS)
@pytest.mark.parametrize('name', ['fastvim', 'vim'])
def test_published_variants_of_fastvim_give_golden_outputs(name, variant, tmp_path):
    parameters, tensors, build = fastvim_golden(name)
    model = build()
    torch.save(FASTVIM_VARIANTS[variant](parameters), tmp_path / 'file.pth')
    checkpoints.load(tmp_path / 'file.pth', model)
    assert all(torch.equal(value, parameters[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        outs = model.eval()(tensors['input'])
    for i, out in enumerate(outs):
        torch.testing.assert_close(out, tensors[f'out.{i}'], atol=1e-5, rtol=0)


def test_vims_class_token_is_reported(fastvim):
    parameters, _, build = fastvim
    assert checkpoints.load(with_class_token(parameters), build()).dropped == ['cls_token']


def test_another_patch_size_is_said(fastvim):
    parameters, _, build = fastvim
    with pytest.raises(checkpoints.CheckpointError, match='trained with patches of 16 x 16 pixels'):
        checkpoints.load(parameters, build(patch_size=8))


def test_position_embedding_of_another_square_grid_is_resized(fastvim):
    parameters, _, build = fastvim
    square = torch.ones(1, 9, parameters['pos_embed'].shape[2])
    model = build()
    checkpoints.load(parameters | {'pos_embed': square}, model)
    torch.testing.assert_close(model.pos_embed, torch.ones_like(model.pos_embed))
    with pytest.raises(checkpoints.CheckpointError, match='no square grid'):
        checkpoints.load(parameters | {'pos_embed': square[:, :7]}, model)
