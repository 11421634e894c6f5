"""Published files of every kind into our models."""

import re

import golden_runs
import pytest
import torch
from published_files import as_convolutions, fastvim_golden, old_names, with_class_token, with_heads

from mmvmamba import checkpoints

VARIANTS = {
    'bare': ('s1', lambda p: p),
    'model': ('s1', lambda p: {'model': p, 'epoch': 3}),
    'state_dict': ('s1', lambda p: {'state_dict': p}),
    'not averaged, as published': ('s1', lambda p: {'model': p, 'model_ema': {k: v + 1 for k, v in p.items()}}),
    'averaged alone': ('s1', lambda p: {'model_ema': p}),
    'state_dict_ema': ('v0', lambda p: {'state_dict': {k: v * 0 for k, v in p.items()}, 'state_dict_ema': p}),
    'compiled': ('s1', lambda p: {f'_orig_mod.{k}': v for k, v in p.items()}),
    'compiled and distributed': ('s1', lambda p: {f'_orig_mod.module.{k}': v for k, v in p.items()}),
    'compiled inside': ('s1', lambda p: {f'module.backbone._orig_mod.{k}': v for k, v in p.items()}),
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
    if how != 'file':  # equal parameters are enough
        return
    with torch.no_grad():
        outs = model.eval()(tensors['input'])
    for i, out in enumerate(outs):
        torch.testing.assert_close(out, tensors[f'out.{i}'], atol=1e-5, rtol=0)


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


def test_each_family_takes_the_entry_that_its_published_readers_take(golden, fastvim):
    parameters, _, kwargs = golden['s1']
    model = golden_runs.vmamba(kwargs)
    content = {'model': parameters, 'model_ema': {k: v + 1 for k, v in parameters.items()}}
    report = checkpoints.load(content, model)
    assert "(entry 'model'; it also has ['model_ema'], which container='model_ema' would take)" in str(report)
    checkpoints.load(content, model, container='model_ema')
    assert torch.equal(model.outnorm0.weight, parameters['outnorm0.weight'] + 1)
    parameters, _, build = fastvim
    content = {'state_dict': {k: v + 1 for k, v in parameters.items()}, 'state_dict_ema': parameters}
    model = build()
    assert checkpoints.load(content, model).container == 'state_dict_ema'
    checkpoints.load(content, model, container='state_dict')
    assert torch.equal(model.pos_embed, parameters['pos_embed'] + 1)


def test_fitting_needs_no_memory_for_the_model(fastvim):
    parameters, _, build = fastvim
    with torch.device('meta'):
        model = build()
    file = {name: value for name, value in parameters.items() if not name.endswith('.norm.bias')}
    fitted, _ = checkpoints.fit(file, model, 'file')
    assert {value.device.type for value in fitted.values()} == {'cpu'}
