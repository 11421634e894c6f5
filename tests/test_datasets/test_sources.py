"""What the datasets of a config read, found without building them."""

import pytest
from mmengine.config import Config

from mmvmamba.datasets import sources
from mmvmamba.engine.coco import evaluate_faster

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

DETECTION = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
SEGMENTATION = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]


def config(scope, dataset):
    return Config(dict(default_scope=scope, train_dataloader=dict(dataset=dataset)))


def keys(scope, **dataset):
    (source,) = sources.sources(config(scope, dict(data_root='root', **dataset)), 'train')
    return [key for key, _ in source.paths()]


@pytest.mark.parametrize('type_', ['CocoDataset', 'mmdet.CocoDataset', 'mmvmamba.CheckedCocoDataset'])
def test_detection_reads_images_and_annotations(type_):
    prefixes = dict(img='a', seg='b', depth='c')
    dataset = dict(type=type_, ann_file='x.json', data_prefix=prefixes, proposal_file='p.pkl')
    assert keys('mmdet', **dataset, pipeline=DETECTION) == ['ann_file', 'proposal_file', 'img']
    with_seg = [dict(type='RandomApply', transforms=[[dict(type='LoadAnnotations', with_seg=True)]])]
    assert keys('mmdet', **dataset, pipeline=with_seg) == ['ann_file', 'proposal_file', 'img', 'seg']


def test_the_pipeline_of_a_wrapper_counts():
    inner = dict(type='CocoDataset', ann_file='x.json', data_prefix=dict(img='a', seg='b'), pipeline=DETECTION)
    outer = dict(type='MultiImageMixDataset', dataset=inner, pipeline=[dict(type='LoadAnnotations', with_seg=True)])
    (source,) = sources.sources(config('mmdet', dict(type='RepeatDataset', times=2, dataset=outer)), 'train')
    assert source.key == 'train_dataloader.dataset.dataset.dataset'
    assert 'seg' in dict(source.paths())


@pytest.mark.parametrize('type_', ['BaseSegDataset', 'mmseg.ADE20KDataset', 'mmvmamba.CheckedSegDataset'])
def test_segmentation_reads_label_maps_if_a_transform_does(type_):
    dataset = dict(type=type_, data_prefix=dict(img_path='a', seg_map_path='b', depth_path='c'))
    assert keys('mmseg', **dataset, pipeline=SEGMENTATION) == ['img_path', 'seg_map_path']
    assert keys('mmseg', **dataset, pipeline=SEGMENTATION[:1]) == ['img_path']


def test_a_class_may_be_given_itself():
    from mmseg.datasets import BaseSegDataset

    prefixes = dict(img_path='a', seg_map_path='b', depth_path='c')
    assert keys('mmseg', type=BaseSegDataset, data_prefix=prefixes, pipeline=SEGMENTATION) == [
        'img_path',
        'seg_map_path',
    ]

    class WithDepth(BaseSegDataset):
        def load_data_list(self):
            return [dict(one, depth=self.data_prefix['depth_path']) for one in super().load_data_list()]

    assert keys('mmseg', type=WithDepth, data_prefix=prefixes, pipeline=SEGMENTATION)[-1] == 'depth_path'


def test_a_class_that_nothing_knows_is_believed_to_read_all():
    assert keys('mmdet', type='NoSuchDataset', data_prefix=dict(img='a', other='b')) == ['img', 'other']


def test_what_is_elsewhere_is_not_looked_for():
    (source,) = sources.sources(config('mmdet', dict(data_root='s3://bucket', ann_file='a.json')), 'train')
    assert source.remote
    assert not list(source.paths())


@pytest.mark.parametrize(
    'change, finds',
    [
        ({}, True),
        (dict(backend_args=None, file_client_args=dict(backend='disk')), True),
        (dict(backend_args=dict(backend='petrel', path_mapping={'data/': 's3://bucket/'})), False),
    ],
)
def test_images_that_a_transform_reads_elsewhere_are_not_looked_for(change, finds):
    pipeline = [dict(DETECTION[0], **change)]
    (source,) = sources.sources(config('mmdet', dict(type='CocoDataset', pipeline=pipeline)), 'train')
    assert (source.finds_images, source.reads_images) == (finds, finds)


def test_images_that_a_users_transform_reads_are_not_looked_for():
    from mmcv.transforms import LoadImageFromFile

    class LoadImageFromArchive(LoadImageFromFile):
        def transform(self, results):
            return results

    pipeline = [dict(type=LoadImageFromArchive)]
    (source,) = sources.sources(config('mmdet', dict(type='CocoDataset', pipeline=pipeline)), 'train')
    assert not source.finds_images


def test_entries_that_a_users_class_reads_in_its_way_are_left_to_it():
    from mmdet.datasets import CityscapesDataset, CocoDataset, CocoPanopticDataset

    class Mine(CocoDataset):
        def parse_data_info(self, raw_data_info):
            return raw_data_info

    listed = [sources.lists_coco_images(cls) for cls in (CocoDataset, CityscapesDataset, CocoPanopticDataset, Mine)]
    assert listed == [True, True, True, False]
    assert sources.reads_coco(Mine)


def test_names_include_the_defaults_of_the_class():
    (source,) = sources.sources(config('mmdet', dict(type='CocoDataset')), 'train')
    assert len(source.metainfo()['classes']) == 80
    (source,) = sources.sources(config('mmdet', dict(type='CocoDataset', metainfo=dict(classes=('cat',)))), 'train')
    assert source.metainfo()['classes'] == ('cat',)


@pytest.mark.parametrize(
    'metric, expected',
    [
        (dict(type='CocoMetric', ann_file='a.json', metric=['bbox', 'segm']), (True, True, True)),
        (dict(type='mmdet.CocoMetric', ann_file='a.json', metric='bbox', format_only=True), (True, False, False)),
        (dict(type='LVISMetric', ann_file='a.json', metric='bbox'), (False, False, True)),
    ],
)
def test_metrics_that_read_a_file(metric, expected):
    cfg = Config(dict(default_scope='mmdet', val_evaluator=[dict(type='DumpDetResults'), metric]))
    (found,) = sources.metrics(cfg, 'val')
    assert found.key == 'val_evaluator[1]'
    assert (found.coco, found.masks, found.compares) == expected


def test_the_metric_that_replaces_mmdets_is_looked_at_like_it():
    pytest.importorskip('faster_coco_eval')
    metric = dict(type='CocoMetric', ann_file='a.json', metric='segm')
    cfg = Config(dict(default_scope='mmdet', val_evaluator=metric))
    evaluate_faster(cfg)
    (found,) = sources.metrics(cfg, 'val')
    assert (found.coco, found.masks, found.compares) == (True, True, True)
