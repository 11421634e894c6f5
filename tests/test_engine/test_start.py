"""Where a training starts from, decided on a config before any work."""

import pytest
import torch
from mmengine.config import Config
from mmengine.model import PretrainedInit
from mmengine.runner import Runner

from mmvmamba import checkpoints
from mmvmamba.engine import start


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.setenv('MMVMAMBA_OFFLINE', '1')
    monkeypatch.setenv('MMVMAMBA_WEIGHTS', str(tmp_path))
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))


def config(checkpoint='mmvmamba://vmamba_tiny_s1l8', type_='Pretrained', **options):
    fill = dict(type='Constant', layer='Conv2d', val=0)
    backbone = dict(type='VMamba', init_cfg=dict(type=type_, checkpoint=checkpoint))
    heads = [dict(type='Head', init_cfg=[fill, dict(type='Pretrained', checkpoint=checkpoint)])]
    return Config(dict(model=dict(type='MaskRCNN', backbone=backbone, roi_head=dict(bbox_head=heads)), **options))


@pytest.mark.parametrize('type_', ['Pretrained', 'mmengine.Pretrained', PretrainedInit], ids=str)
def test_weights_that_are_not_here_stop_it(type_):
    with pytest.raises(checkpoints.WeightsUnavailable) as caught:
        start.settle(config(type_=type_))
    assert 'vssm1_tiny_0230s_ckpt_epoch_264.pth' in str(caught.value)
    assert str(caught.value).splitlines()[-1].startswith('  without: --from-scratch')


def test_weights_that_are_here_are_read(tmp_path):
    path = tmp_path / checkpoints.published()['vmamba_tiny_s1l8'].file
    torch.save({'model': {'a': torch.ones(1)}}, path)
    assert start.settle(config()) == []
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(checkpoints.CheckpointError, match='truncated or damaged'):
        start.settle(config())


@pytest.mark.parametrize('checkpoint', ['gone.pth', '/nowhere/gone.pth'])
def test_files_that_are_missing(checkpoint):
    with pytest.raises(FileNotFoundError, match=r'gone\.pth .*does not exist'):
        start.settle(config(checkpoint))


def test_schemes_of_mmengine_are_left_to_it():
    assert start.settle(config('torchvision://resnet50')) == []


@pytest.mark.parametrize(
    'options, from_scratch, said',
    [
        ({}, True, ['from scratch: training starts from random weights (--from-scratch)']),
        (dict(load_from='whole.pth'), False, []),
        (dict(load_from='whole.pth', resume=True), False, []),
        (dict(load_from='whole.pth', resume=True), True, []),
    ],
)
def test_nothing_is_asked_for_where_it_would_not_be_used(options, from_scratch, said):
    cfg = config(**options)
    assert start.settle(cfg, from_scratch) == said
    assert cfg.model.backbone.init_cfg is None
    assert [entry.type for entry in cfg.model.roi_head.bbox_head[0].init_cfg] == ['Constant']


def test_a_config_without_weights_is_from_scratch_and_says_so():
    (note,) = start.settle(Config(dict(model=dict(type='MaskRCNN', backbone=dict(type='VMamba', init_cfg=None)))))
    assert note.startswith('from scratch: ')


def test_from_scratch_contradicts_weights_for_the_whole_model():
    with pytest.raises(ValueError, match=r"--from-scratch contradicts load_from='whole\.pth'"):
        start.settle(config(load_from='whole.pth'), from_scratch=True)


class Own(Runner):
    @classmethod
    def from_cfg(cls, cfg):
        return cls, cfg


def test_a_runner_is_a_name_or_a_class():
    """As pure-Python configs give it."""
    cls, _ = start.build_runner(Config(dict(runner_type=Own)), [])
    assert issubclass(cls, Own)
    with pytest.raises(KeyError, match='Nope is not in the runner registry'):
        start.build_runner(Config(dict(runner_type='Nope')), [])


def test_trust_changes_no_config(tmp_path):
    """Backbones of others take no such key, and the guard around a run has it."""
    torch.save({'model': {'a': torch.ones(1)}}, tmp_path / 'c.pth')
    cfg = config(str(tmp_path / 'c.pth'))
    start.settle(cfg, trust=True)
    assert cfg.to_dict() == config(str(tmp_path / 'c.pth')).to_dict()
