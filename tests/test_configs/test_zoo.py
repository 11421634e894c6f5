"""The zoo: its page, its metafile, the configs and what is built from them tell the same."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from mmvmamba.checkpoints import published as published_files
from mmvmamba.engine.launch import prepare
from mmvmamba.engine.start import pretrained

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
CONTENT = yaml.safe_load((CONFIGS / 'metafile.yml').read_text())
METAFILE = {row['Name']: row for row in CONTENT['Models']}
BACKBONES = {row['Name']: row for row in CONTENT['Backbones']}
CLASSIFIERS = [name for name, row in METAFILE.items() if row['Config'].startswith('configs/imagenet/')]
DENSE = [name for name in METAFILE if name not in CLASSIFIERS]  # detectors and segmentors
# With which file of an ImageNet classifier the published training of each config began, by the authors' own configs and
# notes; of configs that nobody has published, the file with which ours begins.
STARTED_FROM = {
    'vssm1_tiny_0230s_ckpt_epoch_264.pth': (
        'maskrcnn_vmamba_t maskrcnn_vmamba_t_3x upernet_vmamba_t linear_probe_vmamba_t finetune_vmamba_t'
    ),
    'vssm_tiny_0230_ckpt_epoch_262.pth': 'maskrcnn_vmamba_t_s2l5 upernet_vmamba_t_s2l5',
    'vssm_small_0229_ckpt_epoch_222.pth': (
        'maskrcnn_vmamba_s maskrcnn_vmamba_s_3x upernet_vmamba_s upernet_vmamba_s_640'
    ),
    'vssm_base_0229_ckpt_epoch_237.pth': 'maskrcnn_vmamba_b upernet_vmamba_b',
    'vssmtiny_dp01_ckpt_epoch_292.pth': 'maskrcnn_vmamba_v0_t upernet_vmamba_v0_t',
    'vssmsmall_dp03_ckpt_epoch_238.pth': 'maskrcnn_vmamba_v0_s upernet_vmamba_v0_s',
    'vssmbase_dp05_ckpt_epoch_260.pth': 'maskrcnn_vmamba_v0_b upernet_vmamba_v0_b',
    'FastVim_tiny.ckpt': 'cascade_fastvim_t maskrcnn_fastvim_t upernet_fastvim_t finetune_fastvim_t',
    'FastVim_small.ckpt': 'cascade_fastvim_s maskrcnn_fastvim_s upernet_fastvim_s',
    'FastVim_base.ckpt': 'cascade_fastvim_b maskrcnn_fastvim_b upernet_fastvim_b',
    'vim_s_midclstok_80p5acc.pth': 'cascade_vim_s',
}
FROM_SCRATCH = [name for name in CLASSIFIERS if not name.startswith(('finetune_', 'linear_probe_'))]
NOBODYS = [  # no whole model
    *('maskrcnn_fastvim_t', 'maskrcnn_fastvim_s', 'maskrcnn_fastvim_b', 'upernet_vmamba_s_640'),
    *('linear_probe_vmamba_t', 'finetune_vmamba_t', 'finetune_fastvim_t'),
]
HEADS = {
    'MaskRCNN': 'Mask R-CNN',
    'CascadeRCNN': 'Cascade Mask R-CNN',
    'EncoderDecoder': 'UPerNet',
    'ImageClassifier': 'Linear classifier',
}
NUMBER = re.compile(r'\d+(?:\.\d+)?')


@pytest.fixture(autouse=True)
def _no_leaking_scope():
    yield
    DefaultScope._instance_dict.clear()


def page():
    """Config name to its row on the page: column title to cell."""
    found, titles = {}, None
    for line in (CONFIGS / 'README.md').read_text().splitlines():
        if not line.startswith('| '):
            continue
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if cells[0] == 'config':
            titles = cells
        elif match := re.fullmatch(r'`(?:imagenet/)?(\w+)\.py`', cells[0]):
            assert match.group(1) not in found, f'{match.group(1)} has two rows'
            found[match.group(1)] = dict(zip(titles, cells, strict=True))
    return found


def links():
    """Label to address of the page's links."""
    return dict(re.findall(r'^\[(\w+)\]: (\S+)$', (CONFIGS / 'README.md').read_text(), re.MULTILINE))


def published(row):
    return [value for result in row.get('Results', []) for value in result['Metrics'].values()]


def test_every_config_has_a_row_in_both_and_in_the_same_order():
    paths = [path for folder in (CONFIGS, CONFIGS / 'imagenet') for path in folder.glob('*.py')]
    assert {name: row['Config'] for name, row in METAFILE.items()} == {
        path.stem: str(path.relative_to(ROOT)) for path in paths
    }
    assert list(page()) == list(METAFILE)


def text_of(name):
    return (ROOT / METAFILE[name]['Config']).read_text()


@pytest.mark.parametrize('name', DENSE)
def test_page_and_metafile_agree(name):
    row, cells = METAFILE[name], page()[name]
    meta = row['Metadata']
    shown = next(cell for title, cell in cells.items() if title.startswith('published') and 'M / G' not in title)
    assert [float(n) for n in re.findall(r'\d+\.\d+', shown)] == published(row)
    assert cells['ours'] == row['Ours']
    assert cells['counted M / G'] == f'{meta["Parameters"] / 1e6:.1f} / {meta["FLOPs"] / 1e9:.1f}'
    expected = [meta[key] for key in ('Published Parameters (M)', 'Published FLOPs (G)') if key in meta]
    assert [int(n) for n in NUMBER.findall(cells['published M / G'].replace('[1]', ''))] == expected
    assert ('[1]' in cells['published M / G']) == ('Remark' in meta)
    shown_links = re.findall(r'\]\[(\w+)\]', cells['published weights'])
    assert shown_links == [row['Starts From']] + [name] * bool(row['Weights'])
    assert [links()[label] for label in shown_links] == [published_files()[label].address for label in shown_links]


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_page_and_metafile_agree_on_classifiers(name):
    row, cells = METAFILE[name], page()[name]
    meta = row['Metadata']
    numbers = {title: [float(n) for n in NUMBER.findall(cell)] for title, cell in cells.items()}
    assert numbers['published top-1'] == published(row)
    assert cells['ours'] == row['Ours']
    assert cells['counted M / G'] == f'{meta["Parameters"] / 1e6:.1f} / {meta["FLOPs"] / 1e9:.2f}'
    for title, keys in (
        ('published M / G', ('Published Parameters (M)', 'Published FLOPs (G)')),
        (
            'published img/s, inference / training',
            ('Published Throughput (img/s, A100)', 'Published Training Throughput (img/s, A100)'),
        ),
    ):
        assert numbers[title] == [meta[key] for key in keys if key in meta]
    whole = bool(row['Weights'])
    entry = row['Same File As' if whole else 'Starts From']
    assert cells['published weights'] == f'[{"whole" if whole else "backbone"}][{entry}]'
    assert links()[entry] == published_files()[entry].address
    if whole:
        assert row['Weights'] == BACKBONES[entry]['Weights']
        assert published(row) == [BACKBONES[entry]['Published top-1']]
        assert row['Metadata']['Training Data'] == BACKBONES[entry]['Training Data']


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_counts_of_classifiers_are_the_published_ones(name):
    meta = METAFILE[name]['Metadata']
    if 'Published FLOPs (G)' in meta:
        assert round(meta['FLOPs'] / 1e9, 2) == meta['Published FLOPs (G)']
        assert round(meta['Parameters'] / 1e6, 1) == meta['Published Parameters (M)']
    elif 'Published Parameters (M)' in meta:
        assert round(meta['Parameters'] / 1e6) == meta['Published Parameters (M)']


@pytest.mark.parametrize('name', METAFILE)
def test_metafile_agrees_with_the_config_and_what_it_builds(name, tmp_path):
    row = METAFILE[name]
    meta = row['Metadata']
    cfg = Config.fromfile(ROOT / row['Config'])
    prepare(cfg, 'none', str(tmp_path))
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert meta['Parameters'] == sum(p.numel() for p in model.parameters())
    assert meta['Backbone Parameters'] == sum(p.numel() for p in model.backbone.parameters())
    backbone = cfg.model.backbone
    family = 'Vim' if backbone.type == 'FastVim' and backbone.get('pool', 'mean') is None else backbone.type
    assert meta['Architecture'] == [family, backbone.arch, HEADS[cfg.model.type]]
    assert row['In Collection'] == family
    optimizer = cfg.optim_wrapper.optimizer
    assert (meta['Optimizer'], meta['Learning Rate']) == (optimizer.type, optimizer.lr)
    assert meta['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    length = {'Epochs': cfg.train_cfg.get('max_epochs'), 'Iterations': cfg.train_cfg.get('max_iters')}
    assert {key: meta.get(key) for key in length} == length
    data = {'mmdet': 'COCO 2017', 'mmseg': 'ADE20K', 'mmpretrain': 'ImageNet-1K'}[cfg.default_scope]
    assert meta['Training Data'] == ('images of your own' if name.startswith('finetune_') else data)
    written_to = f'weights/{family.lower()}_{backbone.arch}.safetensors'
    entry = row.get('Starts From') or row['Same File As']
    assert row['Convert'] == f'python tools/convert_checkpoint.py mmvmamba://{entry} {written_to}'
    start = None if name in FROM_SCRATCH else dict(type='Pretrained', checkpoint=f'mmvmamba://{entry}')
    assert backbone.get('init_cfg') == start
    weights = BACKBONES[entry]
    assert (weights['In Collection'], weights['Architecture']) == (family, backbone.arch)


@pytest.mark.parametrize('name', METAFILE)
def test_published_figures_in_config_and_metafile_agree(name):
    said = re.search(r'[Pp]ublished: ([^(]*)', text_of(name).split('_base_')[0])
    if said:
        in_config = [float(n) for n in re.findall(r'\d+\.\d+', said.group(1).split(', with')[0])]
        assert in_config == published(METAFILE[name])[: len(in_config)]


@pytest.mark.parametrize('name', METAFILE)
def test_no_row_is_a_placeholder(name):
    def leaves(node):
        if isinstance(node, dict):
            for value in node.values():
                yield from leaves(value)
        elif isinstance(node, list):
            for value in node:
                yield from leaves(value)
        else:
            yield node

    row = dict(METAFILE[name])
    weights = row.pop('Weights')
    assert weights is None if name in NOBODYS else weights.startswith('https://')
    for leaf in leaves(row):
        assert leaf not in (None, '', 0, '-', '?', 'x'), row
        assert not re.search(r'todo|tbd|placeholder|example\.com', str(leaf), re.IGNORECASE)
    for result in row.get('Results', []):
        assert all(key.startswith('published ') for key in result['Metrics'])


def test_nothing_is_claimed_as_ours():
    assert {row['Ours'] for row in METAFILE.values()} == {'not trained by us'}


@pytest.mark.parametrize('name', FROM_SCRATCH)
def test_classifiers_start_from_scratch_as_published(name):
    assert not list(pretrained(Config.fromfile(ROOT / METAFILE[name]['Config']).model))
    assert 'from scratch as published' in re.sub(r'\n# ', ' ', text_of(name))


@pytest.mark.parametrize('name', [name for name in METAFILE if name not in FROM_SCRATCH])
def test_training_starts_from_what_the_published_figure_started_from(name):
    (file,) = (file for file, names in STARTED_FROM.items() if name in names.split())
    model = Config.fromfile(ROOT / METAFILE[name]['Config']).model
    ((entry, of_the_backbone),) = pretrained(model)
    assert entry.checkpoint == f'mmvmamba://{METAFILE[name]["Starts From"]}'
    assert of_the_backbone
    assert published_files()[METAFILE[name]['Starts From']].file == file
    said = text_of(name)
    assert f"init_cfg=dict(type='Pretrained', checkpoint='mmvmamba://{METAFILE[name]['Starts From']}')" in said


@pytest.mark.parametrize('path', sorted((CONFIGS / 'demo').glob('*.py')), ids=lambda path: path.stem)
def test_demos_start_from_scratch_and_say_so(path):
    cfg = Config.fromfile(path)
    assert not list(pretrained(cfg.model))
    if cfg.default_scope != 'mmpretrain':  # where the recipes start from weights
        assert 'from scratch: nobody publishes weights of this size' in path.read_text()


@pytest.mark.parametrize('path', sorted((CONFIGS / 'distributed').glob('*.py')), ids=lambda path: path.stem)
def test_distributed_examples_start_as_what_they_share(path):
    ((entry, _),) = pretrained(Config.fromfile(path).model)
    assert entry.checkpoint == 'mmvmamba://vmamba_base_s2l15'


def test_every_published_file_has_one_name_and_a_place_where_it_was_read():
    files = [entry.file for name, entry in published_files().items() if name not in CLASSIFIERS]
    assert len(files) == len(set(files)) == len(published_files()) - len(FROM_SCRATCH), 'classifiers have a second one'
    listed = [row for section in ('Backbones', 'Further Models') for row in CONTENT[section]]
    assert all(row['Listed In'] for row in listed)
    names = [row['Name'] for row in (*listed, *METAFILE.values())]
    assert len(names) == len(set(names))
    assert all((CONFIGS.parent / row['Config']).is_file() for row in CONTENT['Further Models'])


def test_addresses_are_nowhere_in_the_code():
    for folder in ('mmvmamba', 'kernels', 'tools'):
        for path in (ROOT / folder).rglob('*.py'):
            assert 'releases/download' not in path.read_text(), path
