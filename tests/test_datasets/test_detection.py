"""The checked COCO dataset built by itself: labels follow the names, as the metric's do."""

import json

import cv2
import numpy as np
import pytest

from mmvmamba.datasets import annotations
from mmvmamba.datasets.report import DataError

mmdet = pytest.importorskip('mmdet')

IDS = dict(cat=7, dog=3, cow=5)


@pytest.fixture
def root(tmp_path):
    """Three pictures, one a category, whose ids are not in the order of the names."""
    images, entries = [], []
    for i, category in enumerate(IDS.values()):
        cv2.imwrite(str(tmp_path / f'{i}.png'), np.zeros((20, 30, 3), np.uint8))
        images.append(dict(id=i, file_name=f'{i}.png', height=20, width=30))
        entries.append(dict(id=i, image_id=i, category_id=category, bbox=[1, 1, 9, 9], area=81, iscrowd=0))
    write(tmp_path, dict(images=images, annotations=entries, categories=[dict(id=i, name=n) for n, i in IDS.items()]))
    return tmp_path


def write(root, content):
    (root / 'a.json').write_text(json.dumps(content))


def build(root, classes=tuple(IDS), **options):
    from mmvmamba.datasets.detection import CheckedCocoDataset

    return CheckedCocoDataset(
        ann_file='a.json', data_root=str(root), data_prefix=dict(img=''), metainfo=dict(classes=classes), **options
    )


def labels(dataset):
    infos = (dataset.get_data_info(i) for i in range(len(dataset)))
    return {info['img_id']: [instance['bbox_label'] for instance in info['instances']] for info in infos}


@pytest.mark.parametrize('classes', [('cat', 'dog', 'cow'), ('cat', 'cow'), ('cow',)])
def test_labels_of_training_and_of_the_metric_are_those_of_the_names(classes, root):
    from mmdet.evaluation import CocoMetric

    dataset = build(root, classes)
    found = labels(dataset)
    for i, name in enumerate(IDS):
        assert found[i] == ([classes.index(name)] if name in classes else [])
    metric = CocoMetric(ann_file=str(root / 'a.json'), metric='bbox')
    chosen = metric._coco_api.get_cat_ids(cat_names=dataset.metainfo['classes'])  # as it does when it evaluates
    assert chosen == dataset.cat_ids == [IDS[name] for name in classes]


@pytest.mark.parametrize('test_mode', [False, True])
@pytest.mark.parametrize(
    'classes, text',
    [
        (('dog', 'cat', 'cow'), "'cat' would be trained as 'dog'"),
        (('cat', 'Dog', 'cow'), "no category is called 'Dog'"),
        ('cat', "is the text 'cat'"),
    ],
)
def test_names_that_do_not_fit_the_file_are_refused(classes, text, test_mode, root):
    with pytest.raises(DataError, match=text):
        build(root, classes, test_mode=test_mode)


def test_what_training_does_without_evaluation_refuses(root, caplog):
    content = json.loads((root / 'a.json').read_text())
    del content['annotations'][1]['area']
    write(root, content)
    assert labels(build(root)) == {0: [0], 1: [], 2: [2]}
    with pytest.raises(DataError, match=r'a\.json: 1 of 3 annotations: no `area`: entry 1'):
        build(root, test_mode=True)


def test_masks_are_needed_if_they_are_loaded(root):
    pipeline = [dict(type='mmdet.LoadAnnotations', with_mask=True)]
    with pytest.raises(DataError, match=r'3 of 3 annotations cannot be used, more than half'):
        build(root, pipeline=pipeline)


@pytest.mark.parametrize(
    'options, text',
    [
        (dict(filter_cfg=dict(min_size=999)), r'nothing is left of 3 images: 0 have no annotation .*, 3 are smaller'),
        (dict(filter_cfg=dict(filter_empty_gt=True)), r'nothing is left of 3 images: 3 have no annotation'),
    ],
)
def test_an_empty_data_set_says_which_filter_took_how_many(options, text, root):
    if 'filter_empty_gt' in options['filter_cfg']:
        content = json.loads((root / 'a.json').read_text())
        write(root, dict(content, annotations=[]))
    with pytest.raises(DataError, match=text):
        build(root, **options)


def test_a_file_that_was_handed_over_is_not_parsed_again(root, monkeypatch):
    path = root / 'a.json'
    annotations.hand_over(path, annotations.examine(annotations.read(path), masks=False))
    monkeypatch.setattr(annotations, 'read', lambda path: pytest.fail('parsed again'))
    assert len(build(root)) == 3
