"""The generated dataset is what COCO's and ADE20K's readers expect, and a seed decides every byte."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from tool_runs import run_tool

THINGS = ['circle', 'triangle', 'square', 'star', 'cross']


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp('made') / 'shapes'
    done = run_tool('make_shapes_dataset.py', out, '--train', 60, '--val', 3, '--size', 64)
    assert done.returncode == 0, done.stderr
    return out


def test_same_seed_same_bytes_other_seed_other_pictures(tmp_path):
    options = ('--train', 2, '--val', 1, '--size', 64)
    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
        assert run_tool('make_shapes_dataset.py', tmp_path / name, *options, '--seed', seed).returncode == 0
    assert files(tmp_path / 'a') == files(tmp_path / 'b')
    assert files(tmp_path / 'a') != files(tmp_path / 'c')


def test_coco_layout(made):
    coco = COCO(made / 'coco/annotations/instances_train2017.json')
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == THINGS
    sizes, crowds, empty = set(), 0, 0
    for image in coco.loadImgs(coco.getImgIds()):
        picture = Image.open(made / 'coco/train2017' / image['file_name'])
        assert picture.size == (image['width'], image['height'])
        sizes.add(picture.size)
        annotations = coco.loadAnns(coco.getAnnIds(image['id']))
        empty += not annotations
        for annotation in annotations:
            mask = coco.annToMask(annotation)
            ys, xs = np.nonzero(mask)
            x, y, width, height = annotation['bbox']
            assert mask.sum() == annotation['area'] > 0
            assert (xs.min(), ys.min()) == (int(x), int(y))
            assert (xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()) == (int(width), int(height))
            crowds += annotation['iscrowd']
    assert len(sizes) >= 5, 'several sizes and aspect ratios'
    assert crowds > 0
    assert empty > 0


def test_ade_layout_shows_the_same_pictures(made):
    labels = sorted((made / 'ade/annotations/training').glob('*.png'))
    assert len(labels) == 60
    coco = COCO(made / 'coco/annotations/instances_train2017.json')
    first_thing = 1 + len(json.loads((made / 'classes.json').read_text())['segmentation']) - len(THINGS)
    for path in labels[:10]:
        image = Image.open(path)
        assert image.mode == 'P'
        values = np.array(image)
        assert values.max() <= 8
        picture = (made / 'ade/images/training' / f'{path.stem}.jpg').read_bytes()
        assert picture == (made / 'coco/train2017' / f'{path.stem}.jpg').read_bytes()
        for annotation in coco.loadAnns(coco.getAnnIds(int(path.stem), iscrowd=False)):
            name = coco.loadCats(annotation['category_id'])[0]['name']
            inside = values[coco.annToMask(annotation) > 0]
            assert (inside == first_thing + THINGS.index(name)).mean() > 0.9


def test_refuses_a_folder_in_use_and_sizes_too_small(made, tmp_path):
    done = run_tool('make_shapes_dataset.py', made)
    assert done.returncode == 2
    assert 'is not empty' in done.stderr
    assert '--overwrite' in done.stderr
    done = run_tool('make_shapes_dataset.py', tmp_path / 'new', '--size', 8)
    assert done.returncode == 2
    assert '--size must be at least 64' in done.stderr
