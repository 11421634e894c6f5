"""ImageNet recipes: pixels of the test pipeline, learning rates step by step, weight decay parameter by parameter."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.runner import Runner
from PIL import Image

from mmvmamba.analysis import flops
from mmvmamba.engine.launch import prepare

pytest.importorskip('mmpretrain')
pytestmark = pytest.mark.filterwarnings('ignore:Detected call of `scheduler.step')  # nothing is trained here
CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
METAFILE = yaml.safe_load((CONFIGS / 'metafile.yml').read_text())['Models']
STEPS = 120  # an epoch; the 1251 of ImageNet take ten times as long and were tried
SHAPES = [(375, 500), (500, 375), (256, 256), (100, 333), (601, 257)]  # height, width


@pytest.fixture(autouse=True)
def _no_leaking_scope():
    yield
    DefaultScope._instance_dict.clear()


def load(name, tmp_path='unused'):
    cfg = Config.fromfile(CONFIGS / f'imagenet/{name}.py')
    prepare(cfg, 'none', str(tmp_path))
    init_default_scope(cfg.default_scope)
    return cfg


def narrow(name, **fields):
    """A config's model with few and narrow blocks, and its optimizer wrapper."""
    cfg = load(name)
    vmamba = cfg.model.backbone.type == 'VMamba'
    few = dict(embed_dims=8, depths=(1, 1, 1, 1)) if vmamba else dict(embed_dims=64, depth=2)
    cfg.model.backbone.update({**few, **fields})
    cfg.model.backbone.init_cfg = None
    cfg.model.head.in_channels = 64 if vmamba else cfg.model.backbone.embed_dims
    model = MODELS.build(cfg.model)
    return cfg, model, build_optim_wrapper(model, cfg.optim_wrapper)


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """Files as a camera writes them; one is tagged as lying on its side, which the published loaders do not look at."""
    folder, generator = tmp_path_factory.mktemp('photographs'), np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, (height, width) in enumerate(SHAPES):
        coarse = Image.fromarray(generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        picture = coarse.resize((width, height), Image.BILINEAR)
        picture.save(folder / f'{i}.jpg', quality=90, **(dict(exif=exif) if i == 1 else {}))
    return folder


def as_published(path, size):
    """Short side to int(256 / 224 * size), bicubic, by Pillow; the middle of that."""
    picture = Image.open(path).convert('RGB')
    short = int(256 / 224 * size)
    width, height = picture.size
    if width < height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    picture = picture.resize((width, height), Image.BICUBIC)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.asarray(picture)[top : top + size, left : left + size]


@pytest.mark.parametrize('size', [224, 288, 384])
@pytest.mark.parametrize('i', range(len(SHAPES)), ids=lambda i: 'x'.join(map(str, SHAPES[i])))
def test_test_pipeline_is_the_published_one_bit_by_bit(i, size, photographs):
    cfg = load('vmamba_t')
    steps = cfg.test_dataloader.dataset.pipeline
    if size != 224:
        steps[1].scale, steps[2].crop_size = int(256 / 224 * size), size
    path = photographs / f'{i}.jpg'
    packed = Compose(steps)(dict(img_path=str(path), gt_label=3))
    expected = as_published(path, size)
    found = packed['inputs'].numpy().transpose(1, 2, 0)[:, :, ::-1]
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)
    normalise = MODELS.build(cfg.model.data_preprocessor)
    inputs = normalise(dict(inputs=packed['inputs'][None], data_samples=[packed['data_samples']]))['inputs'][0]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert np.abs(inputs.numpy().transpose(1, 2, 0) - (expected / 255 - mean) / std).max() < 1e-6


def test_training_pipeline_makes_what_the_model_takes(photographs):
    cfg = load('fastvim_t')
    steps = Compose(cfg.train_dataloader.dataset.pipeline)
    for seed in range(20):  # operations of RandAugment are drawn
        np.random.seed(seed)
        packed = steps(dict(img_path=str(photographs / f'{seed % 5}.jpg'), gt_label=1))
        assert packed['inputs'].shape == (3, 224, 224)
        assert packed['inputs'].dtype == torch.uint8


def rates(name, tmp_path, steps, auto_scale=False):
    """The learning rates of a config's training at some steps, all that are different."""
    cfg, model, _ = narrow(name)
    loader = torch.utils.data.DataLoader(range(STEPS * 2), batch_size=2)
    runner = Runner(
        model=model, work_dir=str(tmp_path), train_dataloader=loader, train_cfg=cfg.train_cfg,
        optim_wrapper=cfg.optim_wrapper, default_scope=cfg.default_scope, log_level='ERROR',
        experiment_name=f'{tmp_path.name}-{auto_scale}',
    )  # fmt: skip
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(runner.optim_wrapper, dict(cfg.auto_scale_lr, enable=auto_scale))
    groups = runner.optim_wrapper.optimizer.param_groups
    groups[:] = {group['lr']: group for group in groups}.values()  # each step takes time for every one
    schedulers = runner.build_param_scheduler(cfg.param_scheduler)
    found = {}
    for step in range(max(steps) + 1):
        if step in steps:
            found[step] = np.array([group['lr'] for group in groups])
        for scheduler in schedulers:
            scheduler.step()
    return found


# Ten steps by hand: in warm-up, at its ends, a quarter, a half, three quarters of the cosine, and at its end.
VMAMBA_RATES = {
    0: 1e-6,
    1: 1e-6 + 0.999e-3 / 2399,  # 20 epochs of 120 steps, the last of which has the full rate
    120: 1e-6 + 0.999e-3 * 120 / 2399,
    1200: 1e-6 + 0.999e-3 * 1200 / 2399,
    2399: 1e-3,
    2400: 1e-3,
    10800: 1e-5 + 0.99e-3 * (1 + math.sqrt(0.5)) / 2,  # 280 epochs are 33,600 steps
    19200: 1e-5 + 0.99e-3 / 2,
    27600: 1e-5 + 0.99e-3 * (1 - math.sqrt(0.5)) / 2,
    35999: 1e-5 + 0.99e-3 * (1 - math.cos(math.pi / 33600)) / 2,
}
FASTVIM_RATES = {
    0: 1e-6,
    1: 1e-6 + 1.999e-3 / 599,
    120: 1e-6 + 1.999e-3 * 120 / 599,
    300: 1e-6 + 1.999e-3 * 300 / 599,
    599: 2e-3,
    600: 2e-3,
    9450: 1e-5 + 1.99e-3 * (1 + math.sqrt(0.5)) / 2,  # 295 epochs are 35,400 steps
    12400: 1e-5 + 1.99e-3 * 0.75,
    24200: 1e-5 + 1.99e-3 * 0.25,
    35999: 1e-5 + 1.99e-3 * (1 - math.cos(math.pi / 35400)) / 2,
}


@pytest.mark.parametrize('name, expected', [('vmamba_t', VMAMBA_RATES), ('fastvim_t', FASTVIM_RATES)])
def test_learning_rate_of_a_whole_training(name, expected, tmp_path):
    found = rates(name, tmp_path, expected)
    assert len(expected) == 10
    for step, rate in expected.items():
        assert found[step] == pytest.approx([rate], rel=1e-9), step


def test_batch_size_scales_the_rates_that_the_published_codes_scale(tmp_path):
    """Two images a step, a 512th of the published batch."""
    found = rates('vmamba_t', tmp_path / 'vmamba', VMAMBA_RATES, auto_scale=True)
    for step, rate in VMAMBA_RATES.items():
        assert found[step] == pytest.approx([rate / 512], rel=1e-9)
    found = rates('fastvim_t', tmp_path / 'fastvim', [600, 35999], auto_scale=True)
    assert found[600] == pytest.approx([2e-3 / 512], rel=1e-9)
    assert found[35999] == pytest.approx([1e-5], rel=1e-3), 'the floor stays'


def decays(model, wrapper):
    """Names of parameters, every number but those of a sequence's parts as N, and their weight decay."""
    groups = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups for p in group['params']}
    found = {}
    for name, parameter in model.named_parameters():
        name = re.sub(r'(layers|blocks)\.\d+', r'\1.N', name)
        assert found.setdefault(name, groups[id(parameter)]) == groups[id(parameter)], name
    return found


def spell(text):
    """Names out of a list in which `{a,b}` stands for each of its words."""
    names = []
    for word in text.split():
        found = re.search(r'\{([^}]*)\}', word)
        names += spell(' '.join(word.replace(found[0], part, 1) for part in found[1].split(','))) if found else [word]
    return names


BLOCK, LAYER = 'backbone.layers.N.blocks.N', 'backbone.layers.N'
VMAMBA_DECAYED = f"""
    backbone.patch_embed.{{0,5}}.weight {LAYER}.downsample.1.weight head.fc.weight {BLOCK}.mlp.{{fc1,fc2}}.weight
    {BLOCK}.op.{{x_proj_weight,dt_projs_weight,dt_projs_bias,A_logs,in_proj.weight,conv2d.weight,out_proj.weight}}
"""
VMAMBA_SPARED = f"""
    backbone.patch_embed.{{0,5}}.bias backbone.patch_embed.{{2,7}}.{{weight,bias}} backbone.outnorm3.{{weight,bias}}
    {LAYER}.downsample.1.bias {LAYER}.downsample.3.{{weight,bias}} {BLOCK}.{{norm,norm2,op.out_norm}}.{{weight,bias}}
    {BLOCK}.op.Ds {BLOCK}.mlp.{{fc1,fc2}}.bias head.fc.bias
"""
VANILLA_DECAYED = f"""
    backbone.patch_embed.0.weight {LAYER}.downsample.reduction.weight head.fc.weight
    {BLOCK}.op.{{x_proj_weight,dt_projs_weight,dt_projs_bias,A_logs,in_proj.weight,conv2d.weight,out_proj.weight}}
"""
VANILLA_SPARED = f"""
    backbone.patch_embed.0.bias backbone.patch_embed.2.{{weight,bias}} backbone.outnorm3.{{weight,bias}}
    {LAYER}.downsample.norm.{{weight,bias}} {BLOCK}.{{norm,op.out_norm}}.{{weight,bias}} {BLOCK}.op.{{Ds,conv2d.bias}}
    head.fc.bias
"""
FASTVIM_DECAYED = f"""
    backbone.pos_embed backbone.patch_embed.proj.weight head.fc.weight
    {LAYER}.mixer.{{in_proj,out_proj,conv1d,conv1d_b,x_proj,x_proj_b,dt_proj,dt_proj_b}}.weight
    {LAYER}.mixer.{{A_log,A_b_log}}
"""
FASTVIM_SPARED = f"""
    backbone.patch_embed.proj.bias backbone.norm_f.weight head.fc.bias {LAYER}.norm.weight {LAYER}.mixer.{{D,D_b}}
    {LAYER}.mixer.{{conv1d,conv1d_b,dt_proj,dt_proj_b}}.bias {LAYER}.mixer.layernorm.{{weight,bias}}
"""
GROUPS = {
    'vmamba_t': (VMAMBA_DECAYED, VMAMBA_SPARED),
    'vmamba_v0_s': (VANILLA_DECAYED, VANILLA_SPARED),
    'fastvim_s': (FASTVIM_DECAYED, FASTVIM_SPARED),
    'vim_b': (FASTVIM_DECAYED + 'backbone.cls_token', FASTVIM_SPARED),
    'finetune_vmamba_t': (VMAMBA_DECAYED, VMAMBA_SPARED),
    'finetune_fastvim_t': (FASTVIM_DECAYED.replace('backbone.pos_embed', ''), FASTVIM_SPARED + 'backbone.pos_embed'),
}


@pytest.mark.parametrize('name', GROUPS)
def test_weight_decay_groups(name):
    """Published: none for what has one dimension or a name that ends in `.bias`; in fine-tuning none for positions."""
    _, model, wrapper = narrow(name)
    decayed, spared = (spell(text) for text in GROUPS[name])
    assert decays(model, wrapper) == dict.fromkeys(decayed, 0.05) | dict.fromkeys(spared, 0.0)


def test_fine_tuning_pairs_fastvims_layers(tmp_path):
    """Of 24 blocks; the embeddings are 13 steps from the head. The floor falls with the layers."""
    _, model, wrapper = narrow('finetune_fastvim_t', embed_dims=16, depth=24)
    groups = {id(p): group['lr'] for group in wrapper.optimizer.param_groups for p in group['params']}
    exponents = [12, 12, 11, 11, 10, 10, 9, 9, 8, 8, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1]
    for name, parameter in model.named_parameters():
        block = re.match(r'backbone\.layers\.(\d+)\.', name)
        exponent = exponents[int(block[1])] if block else 13 if 'embed' in name else 0
        assert groups[id(parameter)] == pytest.approx(2e-3 * 0.65**exponent), name
    found = rates('finetune_fastvim_t', tmp_path, [599, 11999])
    assert found[11999] / found[599] == pytest.approx(np.full(len(found[599]), 5e-3), rel=1e-3)


def test_fine_tuning_steps_through_vmambas_blocks():
    _, model, wrapper = narrow('finetune_vmamba_t', depths=(1, 2, 1, 1))
    names = {id(p): name for name, p in model.named_parameters()}
    steps = {}
    for group in wrapper.optimizer.param_groups:
        steps[names[id(group['params'][0])]] = round(math.log(group['lr'] / 2e-3, 0.8))
    assert steps['backbone.patch_embed.0.weight'] == 6
    assert steps['backbone.layers.0.downsample.1.weight'] == steps['backbone.layers.1.blocks.0.op.A_logs'] == 4
    assert steps['backbone.layers.3.blocks.0.norm.weight'] == 1
    assert steps['backbone.outnorm3.weight'] == steps['head.fc.weight'] == 0


def test_linear_probe_trains_its_linear_layer_alone():
    from mmpretrain.structures import DataSample

    cfg, model, wrapper = narrow('linear_probe_vmamba_t')
    model.init_weights()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ['head.fc.weight', 'head.fc.bias']
    model.train()
    before = {name: p.detach().clone() for name, p in model.state_dict().items()}
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    samples = [DataSample().set_gt_label(label) for label in range(4)]
    model.train_step(dict(inputs=list(images), data_samples=samples), wrapper)
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert moved == ['head.fc.weight', 'head.fc.bias']
    assert before['head.fc.weight'].std().item() == pytest.approx(0.01, rel=0.1)
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size == 4096


@pytest.mark.parametrize('name', ['vmamba_v0_t', 'fastvim_t'])
def test_counts_of_the_metafile(name):
    """By the published rules; all of VMamba are counted in test_analysis."""
    row = next(row for row in METAFILE if row['Name'] == name)
    counted = flops.complexity(MODELS.build(load(name).model), torch.rand(1, 3, 224, 224))
    assert (counted.parameters, counted.flops) == (row['Metadata']['Parameters'], row['Metadata']['FLOPs'])


@pytest.mark.parametrize('name, dense', [('vmamba_t', 'maskrcnn_vmamba_t'), ('fastvim_t', 'upernet_fastvim_t')])
def test_a_classifier_trained_here_starts_a_detector_or_segmentor(name, dense, tmp_path):
    """By the one entry that configs/README.md names; what validation saw is taken, the averaged weights."""
    _, model, _ = narrow(name)
    averaged = model.state_dict()
    raw = {f'module.{key}': value + 1 for key, value in averaged.items()}
    path = tmp_path / 'best_accuracy_top1_epoch_300.pth'
    torch.save(dict(meta=dict(epoch=300), state_dict=averaged, ema_state_dict=raw | dict(steps=torch.tensor(7))), path)
    backbone = Config.fromfile(CONFIGS / f'{dense}.py').model.backbone
    backbone.update(dict(embed_dims=8, depths=(1, 1, 1, 1)) if name == 'vmamba_t' else dict(embed_dims=64, depth=2))
    if name == 'fastvim_t':
        backbone.update(out_indices=(0, 1))
    backbone.init_cfg.checkpoint = str(path)
    backbone = MODELS.build(backbone)
    backbone.init_weights()
    start = backbone.state_dict()
    taken = [key for key in start if not key.startswith('outnorm') and f'backbone.{key}' in averaged]
    others = [key for key in start if key not in taken and not key.startswith('outnorm')]
    assert all(torch.equal(start[key], averaged[f'backbone.{key}']) for key in taken if key != 'pos_embed')
    # RMSNorm has no bias
    assert all(re.fullmatch(r'layers\.\d+\.norm\.bias', key) and not start[key].any() for key in others)
    assert len(taken) > 30
