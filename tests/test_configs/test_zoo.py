"""The zoo: its page, its metafile, the configs and what is built from them tell the same."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from mmvmamba.engine.launch import prepare

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
METAFILE = {row['Name']: row for row in yaml.safe_load((CONFIGS / 'metafile.yml').read_text())['Models']}
HEADS = {'MaskRCNN': 'Mask R-CNN', 'CascadeRCNN': 'Cascade Mask R-CNN', 'EncoderDecoder': 'UPerNet'}
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
        elif match := re.fullmatch(r'`(\w+)\.py`', cells[0]):
            assert match.group(1) not in found, f'{match.group(1)} has two rows'
            found[match.group(1)] = dict(zip(titles, cells, strict=True))
    return found


def links():
    """Label to address of the page's links."""
    return dict(re.findall(r'^\[(\w+)\]: (\S+)$', (CONFIGS / 'README.md').read_text(), re.MULTILINE))


def published(row):
    return [value for result in row.get('Results', []) for value in result['Metrics'].values()]


def test_every_config_has_a_row_in_both_and_in_the_same_order():
    assert set(METAFILE) == {path.stem for path in CONFIGS.glob('*.py')}
    assert list(page()) == list(METAFILE)


@pytest.mark.parametrize('name', METAFILE)
def test_page_and_metafile_agree(name):
    row, cells = METAFILE[name], page()[name]
    meta, weights = row['Metadata'], row['Published Weights']
    shown = next(cell for title, cell in cells.items() if title.startswith('published') and 'M / G' not in title)
    assert [float(n) for n in re.findall(r'\d+\.\d+', shown)] == published(row)
    assert cells['ours'] == row['Ours']
    assert cells['counted M / G'] == f'{meta["Parameters"] / 1e6:.1f} / {meta["FLOPs"] / 1e9:.1f}'
    expected = [meta[key] for key in ('Published Parameters (M)', 'Published FLOPs (G)') if key in meta]
    assert [int(n) for n in NUMBER.findall(cells['published M / G'].replace('[1]', ''))] == expected
    assert ('[1]' in cells['published M / G']) == ('Remark' in meta)
    shown_links = re.findall(r'\]\[(\w+)\]', cells['published weights'])
    assert [links()[label] for label in shown_links] == list(weights.values())


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
    assert meta['Training Data'] == {'mmdet': 'COCO 2017', 'mmseg': 'ADE20K'}[cfg.default_scope]
    written_to = f'weights/{backbone.type.lower()}_{backbone.arch}.safetensors'
    assert re.fullmatch(rf'python tools/convert_checkpoint\.py \S+\.(pth|ckpt) {written_to}', row['Convert'])


@pytest.mark.parametrize('name', METAFILE)
def test_published_figures_in_config_and_metafile_agree(name):
    said = re.search(r'[Pp]ublished: ([^(]*)', (CONFIGS / f'{name}.py').read_text().split('_base_')[0])
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
    assert row.pop('Weights') is None, 'nothing that an inferencer would fetch'
    for leaf in leaves(row):
        assert leaf not in (None, '', 0, '-', '?', 'x'), row
        assert not re.search(r'todo|tbd|placeholder|example\.com', str(leaf), re.IGNORECASE)
    assert all(address.startswith('https://') for address in row['Published Weights'].values())
    for result in row.get('Results', []):
        assert all(key.startswith('published ') for key in result['Metrics'])


def test_nothing_is_claimed_as_ours():
    assert {row['Ours'] for row in METAFILE.values()} == {'not trained by us'}
