"""Every config: it parses, states its published recipe, builds, and runs a forward pass, a loss and its gradients."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS, RUNNERS, STRATEGIES, DefaultScope, init_default_scope

from mmvmamba.engine.launch import enable_tta, prepare

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
PATHS = sorted(path for folder in ('', 'imagenet', 'demo') for path in (CONFIGS / folder).glob('*.py'))
IDS = [str(path.relative_to(CONFIGS)) for path in PATHS]
DENSE = [path for path in PATHS if Config.fromfile(path).default_scope != 'mmpretrain']
DISTRIBUTED = sorted((CONFIGS / 'distributed').glob('*.py'))
MOST_LINES = 30
SIZES = dict(t='tiny', s='small', b='base')
DROP_PATH = dict(t=0.2, s=0.3, b=0.6)  # detection and segmentation alike
VMAMBA = [path.stem for path in PATHS if path.parent == CONFIGS and '_vmamba_' in path.stem]


def load(path, tmp_path):
    cfg = Config.fromfile(path)
    prepare(cfg, 'none', str(tmp_path))
    return cfg


def build(cfg):
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


@pytest.fixture(autouse=True)
def _no_leaking_scope():
    yield
    DefaultScope._instance_dict.clear()


def random_batch(cfg, size):
    """Two images with annotations, as a data loader of the config's task would hand them over."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for _ in range(2)]
    if cfg.default_scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        classes = cfg.model.roi_head.bbox_head
        count = (classes[0] if isinstance(classes, (list, tuple)) else classes).num_classes
        packed = demo_mm_inputs(2, [(3, *size)] * 2, num_items=[2, 3], num_classes=count, with_mask=True)
        return dict(inputs=images, data_samples=packed['data_samples'])
    if cfg.default_scope == 'mmpretrain':
        from mmpretrain.structures import DataSample

        return dict(inputs=images, data_samples=[DataSample().set_gt_label(label) for label in range(2)])
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for _ in images:
        labels = torch.randint(0, cfg.model.decode_head.num_classes, (1, *size), generator=generator)
        samples.append(
            SegDataSample(
                gt_sem_seg=PixelData(data=labels), metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size)
            )
        )
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize('path', PATHS, ids=IDS)
def test_builds_and_every_parameter_gets_a_gradient(path, tmp_path):
    cfg = load(path, tmp_path)
    classifies = cfg.default_scope == 'mmpretrain'
    make_shallow(cfg.model.backbone)
    if cfg.default_scope == 'mmdet':  # a thousand proposals through full-size heads would take minutes here
        for proposals in (cfg.model.train_cfg.rpn_proposal, cfg.model.test_cfg.rpn):
            proposals.update(nms_pre=50, max_per_img=50)
    torch.manual_seed(0)
    model = build(cfg)
    model.train()
    size = (64, 96)
    if cfg.default_scope == 'mmseg':  # its preprocessor pads to the crop; on whole crops this test would take minutes
        model.data_preprocessor.size = None
        model.data_preprocessor.size_divisor = 32
    elif not classifies:
        for sampler in samplers(model):
            sampler.num = 32
    batch = model.data_preprocessor(random_batch(cfg, size), True)
    losses = model(**batch, mode='loss')
    loss, logged = model.parse_losses(losses)
    assert torch.isfinite(loss)
    assert loss > 0
    assert 'loss' in logged if classifies else len(logged) > 2
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    model.eval()
    with torch.no_grad():
        assert len(model(**model.data_preprocessor(random_batch(cfg, size), False), mode='predict')) == 2


def make_shallow(backbone):
    """One block a stage, or as many as there are maps: no other part; parameters are counted in test_zoo.py."""
    if backbone.type == 'VMamba':
        backbone.depths = (1, 1, 1, 1)
    else:
        maps = len(backbone.get('out_indices', ()))
        backbone.depth = max(2, maps)
        if maps:
            backbone.out_indices = tuple(range(backbone.depth))[-maps:]


def samplers(model):
    """RoI samplers of a two-stage detector: a test needs few regions, the recipe's 512 an image take minutes here."""
    found = [model.roi_head.bbox_sampler] if model.with_roi_head else []
    return [s for entry in found for s in (entry if isinstance(entry, list) else [entry])]


def decays(cfg):
    """Every parameter's name and weight decay, of a model with few blocks."""
    if cfg.model.backbone.type == 'VMamba':
        cfg.model.backbone.depths = (1, 1, 1, 1)
    with torch.device('meta'):
        model = build(cfg)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    by_id = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


OPERATOR = ('A_logs', 'Ds', 'x_proj_weight', 'dt_projs_weight', 'dt_projs_bias', 'in_proj.weight', 'conv2d.weight')
# Of the published names, N any number: what has `norm` in it is spared, norms inside of sequences have not.
DECAYED = [
    *(f'patch_embed.{layer}.{kind}' for layer in (0, 2) for kind in ('weight', 'bias')),
    *(f'layers.N.blocks.N.op.{name}' for name in (*OPERATOR, 'out_proj.weight')),
]
SPARED = [f'{norm}.{kind}' for norm in ('layers.N.blocks.N.norm', 'layers.N.blocks.N.op.out_norm', 'outnormN')
          for kind in ('weight', 'bias')]  # fmt: skip
CURRENT_DECAYED = [
    *(f'patch_embed.{layer}.{kind}' for layer in (5, 7) for kind in ('weight', 'bias')),
    *(f'layers.N.blocks.N.mlp.{layer}.{kind}' for layer in ('fc1', 'fc2') for kind in ('weight', 'bias')),
    *(f'layers.N.downsample.{layer}.{kind}' for layer in (1, 3) for kind in ('weight', 'bias')),
]
CURRENT_SPARED = ['layers.N.blocks.N.norm2.weight', 'layers.N.blocks.N.norm2.bias']
VANILLA_DECAYED = ['layers.N.blocks.N.op.conv2d.bias', 'layers.N.downsample.reduction.weight']
VANILLA_SPARED = ['layers.N.downsample.norm.weight', 'layers.N.downsample.norm.bias']


@pytest.mark.parametrize(
    'name', ['maskrcnn_vmamba_t', 'maskrcnn_vmamba_v0_s', 'upernet_vmamba_s', 'upernet_vmamba_v0_b']
)
def test_weight_decay_of_vmamba_is_by_name_as_published(name, tmp_path):
    cfg = load(CONFIGS / f'{name}.py', tmp_path)
    full = cfg.optim_wrapper.optimizer.weight_decay
    found = decays(cfg)
    vanilla = '_v0_' in name
    decayed = [*DECAYED, *(VANILLA_DECAYED if vanilla else CURRENT_DECAYED)]
    spared = [*SPARED, *(VANILLA_SPARED if vanilla else CURRENT_SPARED)]
    backbone = {}
    for key in [key for key in found if key.startswith('backbone.')]:
        short = re.sub(r'(layers\.|blocks\.|outnorm)\d+', r'\1N', key.removeprefix('backbone.'))
        assert backbone.setdefault(short, found[key]) == found[key]
    assert backbone == dict.fromkeys(decayed, full) | dict.fromkeys(spared, 0.0)
    heads = {value for key, value in found.items() if not key.startswith('backbone.')}
    assert heads == {full}, 'the norms of mmdet and mmseg are called bn'


def test_the_cleaner_rule_is_an_option(tmp_path):
    """As configs/README.md says it."""
    command = next(part for part in (CONFIGS / 'README.md').read_text().split('```') if 'norm_decay_mult' in part)
    options = dict(pair.split('=') for pair in re.findall(r'optim_wrapper\.\S+', command))
    cfg = load(CONFIGS / 'maskrcnn_vmamba_t.py', tmp_path)
    cfg.merge_from_dict({key: float(value) for key, value in options.items()})
    found = decays(cfg)
    spared = {name for name, value in found.items() if value == 0}
    with torch.device('meta'):
        model = build(cfg)
    norms = {f'{name}.{kind}' for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)
             for kind in ('weight', 'bias')}  # fmt: skip
    assert spared == norms | {name for name in found if name.endswith(('.A_logs', '.Ds'))}


@pytest.mark.parametrize(
    'path', [p for p in DENSE if re.search('_fastvim_(t|shapes)|_vim_', p.stem)], ids=lambda p: p.stem
)
def test_weight_decay_of_fastvim_spares_norms_and_state_parameters(path, tmp_path):
    cfg = load(path, tmp_path)
    full, free = cfg.optim_wrapper.optimizer.weight_decay, ('A_log', 'A_b_log', '.D', '.D_b', 'pos_embed')
    for name, value in decays(cfg).items():
        if name.startswith('backbone.'):
            assert value == (0.0 if name.endswith(free) or 'norm' in name else full), name


@pytest.mark.parametrize(
    'path', [p for p in PATHS if p.parent.name != 'demo'], ids=[i for i in IDS if 'demo/' not in i]
)
def test_is_short_and_complete(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    assert text.startswith('# '), 'the first line says what it is'
    assert '::' not in text, 'every base is in this repository'


@pytest.mark.parametrize('name', VMAMBA)
def test_architecture_and_drop_path_are_the_published_ones(name):
    backbone = Config.fromfile(CONFIGS / f'{name}.py').model.backbone
    size = next(letter for letter in SIZES if f'_{letter}' in name.replace('_vmamba', ''))
    fields = (
        'v0' if '_v0_' in name else 's1l8' if size == 't' and 's2l5' not in name else 's2l5' if size == 't' else 's2l15'
    )
    assert (backbone.arch, backbone.drop_path_rate) == (f'{SIZES[size]}_{fields}', DROP_PATH[size])


@pytest.mark.parametrize('name', [n for n in VMAMBA if n.startswith('maskrcnn')])
def test_detection_recipe(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    epochs, steps = (36, [27, 33]) if name.endswith('3x') else (12, [8, 11])
    warmup, decay = cfg.param_scheduler
    assert cfg.train_cfg.max_epochs == epochs
    assert (decay.milestones, decay.end) == (steps, epochs)
    assert (warmup.start_factor, warmup.end, warmup.by_epoch) == (0.001, 1000, False)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
    assert tuple(optimizer.betas) == (0.9, 0.999)
    assert cfg.auto_scale_lr.base_batch_size == 16


@pytest.mark.parametrize('name', [n for n in VMAMBA if n.startswith('upernet')])
def test_segmentation_recipe(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    warmup, decay = cfg.param_scheduler
    assert cfg.train_cfg.max_iters == 160000
    assert (warmup.start_factor, warmup.end) == (1e-6, 1500)
    assert (decay.type, decay.power, decay.eta_min, decay.begin, decay.end) == ('PolyLR', 1.0, 0.0, 1500, 160000)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 6e-5, 0.01)
    side = 640 if name.endswith('640') else 512
    assert tuple(cfg.model.data_preprocessor.size) == (side, side)
    crop = next(step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop')
    assert tuple(crop.crop_size) == (side, side)
    assert cfg.model.decode_head.channels == 512
    assert (cfg.model.auxiliary_head.in_index, cfg.model.auxiliary_head.loss_decode.loss_weight) == (2, 0.4)


@pytest.mark.parametrize('path', DISTRIBUTED, ids=lambda path: path.stem)
def test_distributed_examples_change_how_training_is_shared_and_nothing_else(path, tmp_path):
    cfg, plain = load(path, tmp_path), load(CONFIGS / 'maskrcnn_vmamba_b.py', tmp_path)
    changed = {key for key in cfg if cfg[key] != plain.get(key)}
    assert changed == {'runner_type', 'strategy'} | ({'optim_wrapper'} if 'deepspeed' in path.stem else set())
    assert RUNNERS.get(cfg.runner_type) is not None
    assert STRATEGIES.get(cfg.strategy.type) is not None
    ours, theirs = dict(cfg.optim_wrapper), dict(plain.optim_wrapper)
    assert OPTIM_WRAPPERS.get(ours.pop('type')) is not None
    del theirs['type']
    assert ours == theirs


@pytest.mark.parametrize('path', DENSE, ids=lambda path: path.stem)
def test_evaluation_sees_one_image_at_a_time_and_augments_near_its_scale(path, tmp_path):
    """A batch is padded to its largest image, and scans run over the padding: its neighbours would change a result."""
    cfg = load(path, tmp_path)
    assert cfg.val_dataloader.batch_size == cfg.test_dataloader.batch_size == 1
    enable_tta(cfg)
    assert cfg.test_dataloader.dataset.pipeline == cfg.tta_pipeline
