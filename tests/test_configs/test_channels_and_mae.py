"""Configs of images with many channels and of masked pre-training: they build, train a step, say the published."""

from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, TRANSFORMS, DefaultScope, init_default_scope

from mmvmamba import checkpoints

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FURTHER = yaml.safe_load((CONFIGS / 'metafile.yml').read_text())['Further Models']
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


FINE_TUNING = {  # epochs, rate at 1024 images a step, decay for every two blocks, published top-1
    'b': (100, 0.002, 0.65, 83.0),
    'l': (50, 0.004, 0.75, 84.9),
    'h': (50, 0.004, 0.75, 86.1),
    'h_448': (50, 0.004, 0.75, 86.7),
}


@pytest.mark.parametrize('size', FINE_TUNING)
def test_fine_tuning_is_as_published(size):
    path = CONFIGS / f'mae/finetune_fastvim_{size}.py'
    cfg = Config.fromfile(path)
    epochs, rate, decay, published = FINE_TUNING[size]
    warmup, cosine = cfg.param_scheduler
    assert cfg.train_cfg.max_epochs == cosine.end == epochs
    assert (warmup.end, cosine.begin, cosine.T_max) == (5, 5, epochs - 5)
    assert cosine.eta_min_ratio * rate == pytest.approx(1e-5)
    assert (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.paramwise_cfg.layer_decay_rate) == (rate, decay)
    assert cfg.auto_scale_lr.base_batch_size == 1024
    backbone = cfg.model.backbone
    assert (backbone.pool_scale, backbone.drop_path_rate, backbone.norm) == (0.25, 0.3, 'RMS')
    large = size == 'h_448'
    assert cfg.optim_wrapper.get('clip_grad') == (dict(max_norm=3.0) if large else None)
    side, short = (448, 448) if large else (224, 256)
    train, test = cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline
    assert (train[1].scale, test[1].scale, test[2].crop_size) == (side, short, side)
    assert backbone.get('img_size', 224) == side
    assert f'Published: {published} top-1' in path.read_text().replace('\n# ', ' ')
    row = next(row for row in FURTHER if row['Name'] == path.stem)
    assert row['published top-1'] == published


def test_rates_of_fine_tuning_fall_towards_the_stem_in_pairs():
    with torch.device('meta'):
        cfg, model = build(CONFIGS / 'mae/finetune_fastvim_b.py', depth=4)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {id(p): group['lr'] for group in wrapper.optimizer.param_groups for p in group['params']}
    exponents = {'patch_embed': 3, 'pos_embed': 3, 'norm_f': 0, 'fc': 0}
    for name, parameter in model.named_parameters():
        parts = name.split('.')[1:]
        exponent = 2 - int(parts[1]) // 2 if parts[0] == 'layers' else exponents[parts[0]]
        assert rates[id(parameter)] == pytest.approx(0.002 * 0.65**exponent), name


@pytest.mark.parametrize('stem', ['demo_finetuned', 'demo_detector'])
def test_the_demos_encoder_fits_what_goes_on_from_it(stem):
    _, pretrained = build(CONFIGS / 'mae/demo.py')
    cfg, model = build(CONFIGS / f'mae/{stem}.py')
    assert cfg.model.backbone.pool_scale == 1 - pretrained.backbone.mask_ratio
    report = checkpoints.load({'state_dict': pretrained.state_dict()}, model.backbone)
    assert [name for name in report.fresh if not name.startswith('outnorm')] == []
    assert torch.equal(model.backbone.layers[3].mixer.A_log, pretrained.backbone.layers[3].mixer.A_log)
    epochs = Config.fromfile(CONFIGS / 'mae/demo.py').train_cfg.max_epochs
    assert cfg.model.backbone.init_cfg.checkpoint == f'work_dirs/mae_demo/epoch_{epochs}.pth'


@pytest.mark.parametrize('path', [CONFIGS / 'jumpcp/demo.py', CONFIGS / 'mae/demo.py'], ids=name)
def test_demos_start_from_scratch(path):
    cfg = Config.fromfile(path)
    assert 'init_cfg' not in cfg.model.backbone
    assert cfg.load_from is None
