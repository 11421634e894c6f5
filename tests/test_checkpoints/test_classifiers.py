"""Classifiers' files of every kind, whole into mmpretrain's classifier, and its own into detectors' backbones."""

import golden_runs
import pytest
import torch
from golden_runs import parameters_of, published_name
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmvmamba.kernels.testing import load_golden
from published_files import DATA, as_convolutions, old_names

from mmvmamba import checkpoints
from mmvmamba.models import FastVim, VMamba

pytest.importorskip('mmpretrain')


def golden(name):
    """Parameters as published, the tensors, and the published arguments."""
    tensors, metadata = load_golden(DATA / f'cls_{name}.safetensors')
    return parameters_of(tensors), tensors, metadata['official_kwargs']


def oldest(parameters):
    return {name.removeprefix('classifier.'): value for name, value in old_names(parameters).items()}


def zeros(parameters, prefix=''):
    return {prefix + name: torch.zeros_like(value) for name, value in parameters.items()}


def prefixed(parameters, prefix):
    return {prefix + name: value for name, value in parameters.items()}


FILES = {
    'vmamba': ('vmamba', lambda p: {'model': p, 'model_ema': zeros(p), 'epoch': 3}),
    'vmamba, averaged alone': ('vmamba', lambda p: {'model_ema': p}),
    'vmamba, oldest names': ('vmamba', lambda p: {'model': oldest(p)}),
    'vmamba, convolutions': ('vmamba', as_convolutions),
    'vmamba, distributed': ('vmamba', lambda p: {'model': prefixed(p, 'module.')}),
    'fastvim': ('fastvim', lambda p: {'state_dict': zeros(p, 'backbone.'), 'state_dict_ema': p}),
    'fastvim, fine-tuned': ('fastvim', lambda p: {'state_dict': prefixed(p, 'backbone.')}),
    'fastvim, averaged beside': (
        'fastvim',
        lambda p: {'state_dict': prefixed(p, 'backbone.') | zeros(p, 'ema.module.')},
    ),
    'vim': ('vim', lambda p: {'state_dict': zeros(p, 'backbone.'), 'state_dict_ema': p}),
}


def check(model, parameters):
    for name, value in model.state_dict().items():
        assert torch.equal(value, parameters[published_name(name, parameters)]), name


def config(theirs, **options):
    return Config(dict(model=golden_runs.classifier_config(theirs, **options), default_scope='mmpretrain'))


def by_load(path, theirs):
    model = golden_runs.classifier(theirs)
    report = checkpoints.load(path, model)
    assert report.fresh == []
    return model


def by_inferencer(path, theirs):
    from mmpretrain import get_model  # what its inferencers call

    with checkpoints.guard():
        return get_model(config(theirs), pretrained=str(path))


def by_init_cfg_of_the_whole(path, theirs):
    model = golden_runs.classifier_config(theirs) | dict(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    with DefaultScope.overwrite_default_scope('mmpretrain'), checkpoints.guard():
        from mmpretrain.registry import MODELS

        model = MODELS.build(model)
        model.init_weights()
    return model


@pytest.mark.parametrize('road', [by_load, by_inferencer, by_init_cfg_of_the_whole])
@pytest.mark.parametrize('kind', FILES)
def test_published_files_load_whole(kind, road, tmp_path):
    name, wrap = FILES[kind]
    parameters, _, theirs = golden(name)
    torch.save(wrap(parameters), tmp_path / 'c.pth')
    check(road(tmp_path / 'c.pth', theirs), parameters)


def test_what_was_taken_and_what_else_there_is_are_said():
    parameters, _, theirs = golden('fastvim')
    model = golden_runs.classifier(theirs)
    content = {'state_dict': prefixed(parameters, 'backbone.') | zeros(parameters, 'ema.module.')}
    report = checkpoints.load(content | {'state_dict_ema': parameters}, model)
    assert "(entry 'state_dict_ema'; it also has ['state_dict'], which container='state_dict' would take)" in str(
        report
    )
    assert f"{len(parameters)} averaged tensors, which prefix='ema.module.' would take" in str(
        checkpoints.load(content, model)
    )
    checkpoints.load(content, model, prefix='ema.module.')
    assert not model.head.fc.weight.any()


@pytest.mark.parametrize('name', ['vmamba', 'fastvim', 'vim'])
def test_a_rest_is_an_error(name):
    parameters, _, theirs = golden(name)
    model = golden_runs.classifier(theirs)
    head = next(key for key in parameters if key.endswith('head.bias'))
    norm = next(key for key in parameters if key in ('classifier.norm.weight', 'norm_f.weight'))
    for content, words in (
        (parameters | {'layers.0.more': torch.ones(1)}, r'(?s)1 unexpected:.*backbone\.layers\.0\.more \(1,\)'),
        ({k: v for k, v in parameters.items() if k != head}, r'(?s)1 missing:.*head\.fc\.bias \(10,\)'),
        ({k: v for k, v in parameters.items() if k != norm}, r'(?s)1 missing:.*backbone\.(outnorm3|norm_f)\.weight'),
        ({k: v for k, v in parameters.items() if 'head' not in k}, r"backbone alone .*nothing for \['head'\]"),
    ):
        with pytest.raises(checkpoints.CheckpointError, match=words):
            checkpoints.load(content, model)


def test_another_number_of_classes():
    parameters, _, theirs = golden('vmamba')
    model = golden_runs.classifier(theirs | dict(num_classes=3))
    with pytest.raises(checkpoints.CheckpointError, match=r'(?s)number of classes.*head\.fc\.weight: checkpoint \(10'):
        checkpoints.load(parameters, model)
    report = checkpoints.load(parameters, model, fresh_heads=True)
    assert report.fresh == ['head.fc.weight', 'head.fc.bias']
    assert torch.equal(model.backbone.outnorm3.weight, parameters['classifier.norm.weight'])


def dense(name, theirs, **options):
    """A detector's or segmentor's backbone of the same measures."""
    if name == 'vmamba':
        return VMamba(embed_dims=theirs['dims'], depths=theirs['depths'], **options)
    pool = None if name == 'vim' else 'mean'
    sizes = dict(embed_dims=theirs['embed_dim'], depth=theirs['depth'], img_size=theirs['img_size'])
    return FastVim(pool=pool, out_indices=(0, theirs['depth'] - 1), **sizes, **options)


@pytest.fixture
def pretrained(request, tmp_path):
    """A checkpoint of mmpretrain's own training with averaged weights: `state_dict` holds those."""
    parameters, _, theirs = golden(request.param)
    model = golden_runs.classifier(theirs)
    checkpoints.load(parameters, model)
    runner = Runner(
        model,
        str(tmp_path),
        train_dataloader=dict(
            dataset=[dict(inputs=torch.ones(3, 32, 32))],
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=1,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        custom_hooks=[dict(type='EMAHook')],
        default_hooks=dict(logger=None),
        experiment_name=tmp_path.name,
        default_scope='mmpretrain',
    )
    runner.call_hook('before_run')
    for value in runner.model.parameters():  # the raw weights
        value.data.zero_()
    runner.save_checkpoint(str(tmp_path), 'epoch_1.pth', save_optimizer=False)
    assert any(isinstance(hook, EMAHook) for hook in runner.hooks)
    return request.param, parameters, theirs, tmp_path / 'epoch_1.pth'


@pytest.mark.parametrize('pretrained', ['vmamba', 'fastvim', 'vim'], indirect=True)
def test_averaged_checkpoints_of_mmpretrain_load_into_classifiers_and_dense_backbones(pretrained):
    name, parameters, theirs, path = pretrained
    for road in (by_load, by_inferencer):
        check(road(path, theirs), parameters)
    raw = golden_runs.classifier(theirs)
    report = checkpoints.load(path, raw, container='ema_state_dict')
    assert report.fresh == []
    assert not any(value.any() for value in raw.parameters())
    backbone = dense(name, theirs, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    backbone.init_weights()
    published = dense(name, theirs)
    report = checkpoints.load(parameters, published)
    assert {name.partition('.')[0].rstrip('0123456789') for name in report.fresh} == {
        'outnorm' if name == 'vmamba' else 'outnorm_'
    }
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, published.state_dict()[key]), 'whichever file the weights came in'


def test_a_classifiers_norm_is_the_norm_of_its_backbone_alone():
    parameters, _, theirs = golden('vmamba')
    last = dense('vmamba', theirs, out_indices=(3,))
    assert checkpoints.load(oldest(parameters), last).dropped == ['classifier.head.bias', 'classifier.head.weight']
    assert torch.equal(last.outnorm3.weight, parameters['classifier.norm.weight'])
    every = dense('vmamba', theirs)
    report = checkpoints.load(parameters, every)
    assert len(report.fresh) == 8
    assert 'classifier.norm.weight' in report.dropped
    assert (every.outnorm3.weight == 1).all(), 'fresh, as the published detectors start'


def test_positions_of_another_grid_keep_the_class_tokens_row():
    _, _, theirs = golden('vim')
    small = golden_runs.classifier(theirs | dict(img_size=(48, 48))).backbone
    big = golden_runs.classifier(theirs | dict(img_size=(80, 96))).backbone
    big.load_state_dict(small.state_dict())
    assert torch.equal(big.pos_embed[:, 15], small.pos_embed[:, 4])
    image = torch.randn(1, 3, 80, 96)
    torch.testing.assert_close(big.eval()(image), small.eval()(image), rtol=0, atol=1e-5)
