"""Configs of images with many channels and of masked pre-training: they build, train a step, say the published."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, TRANSFORMS, DefaultScope, init_default_scope

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
CHANNELS = sorted((CONFIGS / 'jumpcp').glob('*.py'))
MAE = sorted((CONFIGS / 'mae').glob('mae_*.py')) + [CONFIGS / 'mae/demo.py']
PUBLISHED = {  # parameters, and those of the fixed embeddings
    'fastchannelvim_s16': 25316129,
    'fastchannelvim_s16_max': 25316129,
    'channelvim_s16': 25316513,
    'fastchannelvim_s8': 25468193,
    'fastchannelvim_s8_max': 25468193,
    'channelvim_s8': 25468577,
    'mae_fastvim_b': 101178112,
    'mae_fastvim_l': 343561472,
    'mae_fastvim_h': 705358412,
}


def name(path):
    return f'{path.parent.name}/{path.stem}'


def build(path, **backbone):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.update(backbone)
    return cfg, MODELS.build(cfg.model)


@pytest.fixture(autouse=True)
def _no_leaking_scope():
    yield
    DefaultScope._instance_dict.clear()


@pytest.mark.parametrize('path', [p for p in CHANNELS + MAE if p.stem in PUBLISHED], ids=name)
def test_sizes_are_the_published_ones(path):
    with torch.device('meta'):
        _, model = build(path)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[path.stem]


@pytest.mark.parametrize('path', CHANNELS, ids=name)
def test_channels_train_a_step_and_predict(path):
    from mmpretrain.structures import DataSample

    torch.manual_seed(0)
    _, model = build(path, depth=1, sample_channels=False)
    images = [torch.randint(0, 256, (8, 32, 48), dtype=torch.uint8) for _ in range(2)]
    samples = [DataSample().set_gt_label(label) for label in range(2)]
    batch = model.data_preprocessor(dict(inputs=images, data_samples=samples), True)
    assert batch['inputs'].shape == (2, 8, 32, 48)
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        assert len(model.eval()(**batch, mode='predict')) == 2


@pytest.mark.parametrize('path', MAE, ids=name)
def test_mae_trains_a_step(path):
    torch.manual_seed(0)
    cfg, model = build(path, depth=1, **({} if path.stem == 'demo' else dict(embed_dims=64)))
    if path.stem != 'demo':
        cfg.model.neck.embed_dims = 64
        model.neck = MODELS.build(cfg.model.neck)
    side = model.backbone.grid[0] * model.backbone.patch_size
    images = [torch.randint(0, 256, (3, side, side), dtype=torch.uint8) for _ in range(2)]
    from mmpretrain.structures import DataSample

    samples = [DataSample() for _ in images]
    batch = model.data_preprocessor(dict(inputs=torch.stack(images), data_samples=samples), True)
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    assert 0.5 < loss < 4
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_mae_decays_everything_that_is_trained():
    with torch.device('meta'):
        cfg, model = build(CONFIGS / 'mae/mae_fastvim_b.py', depth=1)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert {group['weight_decay'] for group in wrapper.optimizer.param_groups} == {0.05}


def test_published_recipe_of_channels():
    cfg, model = build(CONFIGS / 'jumpcp/fastchannelvim_s16.py', depth=1)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decay = {id(p): g['weight_decay'] for g in wrapper.optimizer.param_groups for p in g['params']}
    for label, parameter in model.named_parameters():
        free = parameter.ndim == 1 or label.endswith('.bias')
        assert decay[id(parameter)] == (0.0 if free else 0.04), label
    last = cfg.param_scheduler[-1].copy()
    last.pop('convert_to_iter_based')
    scheduler = PARAM_SCHEDULERS.get(last.pop('type')).build_iter_from_epoch(wrapper, epoch_length=2, **last)
    for _ in range(200):
        scheduler.step()
    values = {round(group['weight_decay'], 6) for group in wrapper.optimizer.param_groups}
    assert values == {0.0, 0.4}
    assert model.backbone.layers[0].mixer.pool == 'mean'
    assert len(cfg.model.data_preprocessor.mean) == len(cfg.model.data_preprocessor.std) == 8
    for transform in cfg.train_pipeline:
        TRANSFORMS.build(transform)


@pytest.mark.parametrize('path', [CONFIGS / 'jumpcp/demo.py', CONFIGS / 'mae/demo.py'], ids=name)
def test_demos_start_from_scratch(path):
    cfg = Config.fromfile(path)
    assert 'init_cfg' not in cfg.model.backbone
    assert cfg.load_from is None
