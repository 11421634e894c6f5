"""Nothing that does not fit is used, and what does not fit is named."""

import logging

import golden_runs
import pytest
import torch
from published_files import Dangerous, as_convolutions
from torch import nn

from mmvmamba import checkpoints
from mmvmamba.models import VMamba
from mmvmamba.models.backbones.vmamba import ARCHS, MAMBA2_ARCHS


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


def test_a_wrapped_backbone_takes_what_the_bare_one_takes(golden):
    parameters, _, kwargs = golden['v0']
    classifier = {f'module.{name}': value for name, value in parameters.items() if not name.startswith('outnorm')}
    model = golden_runs.vmamba(kwargs)
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        for value in model.parameters():
            value.data.zero_()
        assert len(checkpoints.load({'model': classifier}, wrapped).fresh) == 2 * len(kwargs['depths'])
        own = model.state_dict()
        assert all(torch.equal(own[name], parameters[name]) for name in own if not name.startswith('outnorm'))


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


@pytest.mark.parametrize('arch', {**ARCHS, **MAMBA2_ARCHS})
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


@pytest.mark.parametrize('prefix', ['model.', 'encoder.', 'net.encoder.'])
def test_a_prefix_is_named_and_can_be_removed(prefix, golden):
    parameters, _, kwargs = golden['s1']
    content = {
        'state_dict': {prefix + name: value for name, value in parameters.items()} | {'head.bias': torch.ones(2)}
    }
    model = golden_runs.vmamba(kwargs)
    with pytest.raises(checkpoints.CheckpointError) as caught:
        checkpoints.load(content, model)
    assert f"names differ by a prefix, '{prefix}'" in str(caught.value)
    assert 'another architecture' not in str(caught.value)
    checkpoints.load(content, model, prefix=prefix)
    assert torch.equal(model.outnorm0.weight, parameters['outnorm0.weight'])
    with pytest.raises(checkpoints.CheckpointError, match=r"prefix='other\.'; its names begin with \['"):
        checkpoints.load(content, model, prefix='other')


def test_a_prefix_of_a_whole_detector_is_named(golden):
    model = detector(golden)
    content = {f'model.{name}': value for name, value in model.state_dict().items()}
    with pytest.raises(checkpoints.CheckpointError, match=r"differ by a prefix, 'model\.'"):
        checkpoints.load(content, model)
    checkpoints.load(content, model, prefix='model.')


def test_a_name_may_not_occur_twice(golden):
    parameters, _, kwargs = golden['s1']
    content = parameters | {'module.outnorm0.weight': parameters['outnorm0.weight']}
    with pytest.raises(checkpoints.CheckpointError, match=r'has outnorm0\.weight twice'):
        checkpoints.load(content, golden_runs.vmamba(kwargs))


def test_a_compiled_model_takes_its_file(golden):
    model = detector(golden)
    content = {name: value + 1 for name, value in model.state_dict().items()}
    model.backbone = torch.compile(model.backbone)
    checkpoints.load(content, model)
    assert torch.equal(model.backbone.outnorm0.weight, content['backbone.outnorm0.weight'])


def detector(golden, classes=3):
    _, _, kwargs = golden['s1']
    model = nn.Module()
    model.backbone, model.neck, model.head = golden_runs.vmamba(kwargs), nn.Linear(2, 2), nn.Module()
    model.head.shared, model.head.cls = nn.Linear(2, 2), nn.Linear(2, classes)
    return model


def test_heads_of_another_number_of_classes_stay_fresh_on_request(golden):
    file, model = detector(golden, classes=80).state_dict(), detector(golden)
    before = model.head.cls.weight.clone()
    with pytest.raises(checkpoints.CheckpointError) as caught:
        checkpoints.load(file, model)
    assert 'its heads have other shapes, as with another number of classes.\n2 of another shape' in str(caught.value)
    assert 'head.cls.weight: checkpoint (80, 2), model (3, 2)' in str(caught.value)
    assert '--fresh-heads' in str(caught.value)
    report = checkpoints.load(file, model, fresh_heads=True)
    assert report.fresh == ['head.cls.weight', 'head.cls.bias']
    assert 'left at their initial values: head.cls.weight, head.cls.bias' in str(report)
    assert torch.equal(model.head.cls.weight, before)
    assert torch.equal(model.head.shared.weight, file['head.shared.weight'])


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        ('neck.weight', torch.ones(3, 2), r'neck\.weight: checkpoint \(3, 2\)'),
        ('backbone.outnorm0.bias', torch.ones(3), r'backbone\.outnorm0\.bias: checkpoint \(3,\)'),
        ('head.shared.weight', torch.ones(3, 3), r'head\.shared\.weight: checkpoint \(3, 3\)'),
        ('head.cls.bias', None, r'(?s)1 missing:.*head\.cls\.bias'),
        ('head.more', torch.ones(1), r'(?s)1 unexpected:.*head\.more'),
    ],
)
def test_fresh_heads_excuse_nothing_else(name, value, words, golden):
    file = detector(golden, classes=80).state_dict() | {name: value}
    file = {name: value for name, value in file.items() if value is not None}
    with pytest.raises(checkpoints.CheckpointError, match=words):
        checkpoints.load(file, detector(golden), fresh_heads=True)


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_a_backbone_alone_is_no_detector(prefix, golden):
    parameters, _, _ = golden['s1']
    file = {prefix + name: value for name, value in parameters.items()} | {'classifier.head.bias': torch.ones(2)}
    model = detector(golden)
    with pytest.raises(checkpoints.CheckpointError, match=r"backbone alone .*nothing for \['neck', 'head'\].*init_cfg"):
        checkpoints.load(file, model, fresh_heads=True)
    fitted, report = checkpoints.fit(file, model, 'file', backbone_alone=True)
    assert fitted.keys() == {f'backbone.{name}' for name in parameters}
    assert report.dropped == ['classifier.head.bias']
    assert report.fresh[0] == 'neck.weight'
    assert len(report.fresh) == 6


def test_odd_shapes_are_refused_not_stumbled_over(golden):
    parameters, _, kwargs = golden['s1']
    for name in ('layers.0.blocks.0.norm.weight', 'layers.0.blocks.0.op.A_logs'):
        with pytest.raises(checkpoints.CheckpointError, match=name):
            checkpoints.load(parameters | {name: torch.ones(1, 1, 1, 1, 1)}, golden_runs.vmamba(kwargs))
