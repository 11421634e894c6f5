"""What the toolboxes train on is not refused."""

import json

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from mmvmamba.datasets import audit

IMAGES = [dict(id=i, file_name=f'{i}.png', height=8, width=8) for i in range(3)]
BOX = dict(id=1, image_id=0, category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=0)


@pytest.fixture
def root(tmp_path):
    for folder in ('img', 'seg'):
        (tmp_path / folder).mkdir()
        for i in range(3):
            picture = np.full((8, 8, 3), i, np.uint8) if folder == 'img' else np.arange(64).reshape(8, 8) % 3
            Image.fromarray(picture.astype(np.uint8)).save(tmp_path / folder / f'{i}.png')
    return tmp_path


def errors(scope, dataset, split='train', model=None, **more):
    cfg = Config(dict(default_scope=scope, model=model or {}, **{f'{split}_dataloader': dict(dataset=dataset)}, **more))
    return [found.text for found in audit.audit(cfg, (split,)).of('error')]


def coco(root, content, **changes):
    pytest.importorskip('mmdet.datasets')
    (root / 'a.json').write_text(json.dumps(dict(images=IMAGES, categories=[dict(id=1, name='cat')], **content)))
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
    settings = dict(data_root=str(root), ann_file='a.json', data_prefix=dict(img='img/'), pipeline=pipeline)
    return dict(type='mmdet.CocoDataset', metainfo=dict(classes=('cat',)), **settings) | changes


def test_images_without_labels_need_no_annotations(root):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadEmptyAnnotations')]
    unlabelled = coco(root, {}, filter_cfg=dict(filter_empty_gt=False), pipeline=pipeline)
    assert not errors('mmdet', unlabelled)
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert len(DATASETS.build(dict(unlabelled, type='mmvmamba.CheckedCocoDataset'))) == 3
    assert 'has no `annotations`' in errors('mmdet', coco(root, {}))[0]


@pytest.mark.parametrize('prefix', ['s3://bucket/img/', 'nowhere/'])
def test_images_elsewhere(prefix, root):
    backend = dict(backend='petrel', path_mapping={str(root): 's3://bucket'})
    pipeline = [dict(type='LoadImageFromFile', backend_args=None if '://' in prefix else backend)]
    dataset = coco(root, dict(annotations=[BOX]), data_prefix=dict(img=prefix), pipeline=pipeline)
    assert not errors('mmdet', dataset)


def test_an_evaluation_of_a_file_cut_down_to_some_images(root):
    content = dict(annotations=[BOX, dict(BOX, id=2, image_id=77)])
    metric = dict(type='mmdet.CocoMetric', ann_file=str(root / 'a.json'), metric='bbox')
    assert not errors('mmdet', coco(root, content, test_mode=True), 'val', val_evaluator=metric)


def test_a_users_class_reads_entries_in_its_way(root):
    from mmdet.datasets import CocoDataset

    class ByNumber(CocoDataset):
        def parse_data_info(self, raw_data_info):
            raw_data_info['raw_img_info']['file_name'] = f'{raw_data_info["raw_img_info"]["id"]}.png'
            return super().parse_data_info(raw_data_info)

    dataset = coco(root, dict(annotations=[BOX]), type=ByNumber)
    content = json.loads((root / 'a.json').read_text())
    for image in content['images']:
        del image['file_name']
    (root / 'a.json').write_text(json.dumps(content))
    assert not errors('mmdet', dataset)
    assert errors('mmdet', dict(dataset, type='mmdet.CocoDataset'))


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_segmentation_of_either_toolbox(scope, root):
    pytest.importorskip(f'{scope}.datasets')
    load = dict(
        type='LoadAnnotations', **(dict(with_bbox=False, with_label=False, with_seg=True) if scope == 'mmdet' else {})
    )
    prefixes = dict(img_path='img/', seg_map_path='seg/')
    dataset = dict(type=f'{scope}.BaseSegDataset', data_root=str(root), data_prefix=prefixes, img_suffix='.png')
    dataset.update(pipeline=[dict(type='LoadImageFromFile'), load], metainfo=dict(classes=('a', 'b')))
    (said,) = {text.partition('; ')[0] for text in errors(scope, dict(dataset)) if 'label file' in text}
    assert said == 'its label file has labels 2'
    head = dict(num_classes=2, ignore_index=2)
    assert not errors(scope, dataset, model=dict(decode_head=head))
