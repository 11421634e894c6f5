"""COCO annotation files with gaps: found by entry, left out of training, refused by evaluation."""

import copy
import json
import time

import pytest

from mmvmamba.datasets import annotations
from mmvmamba.datasets.report import DataError

SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]


def small(images=4, each=3):
    """A sound file."""
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', height=40, width=60) for i in range(images)],
        annotations=[
            dict(
                id=100 + i, image_id=i % images, category_id=7, bbox=[2, 2, 10, 10], area=100.0, iscrowd=0,
                segmentation=copy.deepcopy(SQUARE),
            )
            for i in range(images * each)
        ],
        categories=[dict(id=7, name='cat'), dict(id=9, name='dog')],
    )  # fmt: skip


def entry(**changes):
    def spoil(content):
        content['annotations'][4].update(changes)

    return spoil


def without(part, key):
    def spoil(content):
        del content[part][1 if part == 'images' else 4][key]

    return spoil


def dropping(part, value):
    def spoil(content):
        content[part].append(value)

    return spoil


# what is wrong, how the text says it, which part
CRASHES = {
    'no mask': (without('annotations', 'segmentation'), 'no `segmentation`'),
    'empty mask': (entry(segmentation=[]), 'no `segmentation`'),
    'null mask': (entry(segmentation=None), 'no `segmentation`'),
    'flat mask': (entry(segmentation=SQUARE[0]), '`segmentation` is no list of polygons'),
    'mask as text': (entry(segmentation='ab'), '`segmentation` is a str'),
    'mask of texts': (entry(segmentation=[list('123456')]), 'coordinates in `segmentation`'),
    'short polygon': (entry(segmentation=[[1, 2, 3, 4]]), 'no polygon of three points'),
    'RLE of another size': (entry(segmentation=dict(size=[4, 6], counts=[24])), 'the `size` of an RLE'),
    'RLE too short': (entry(segmentation=dict(size=[40, 60], counts=[24])), 'the `counts` of an RLE'),
    'RLE without size': (entry(segmentation=dict(counts=[24])), 'an RLE without `counts` or `size`'),
    'no area': (without('annotations', 'area'), 'no `area`'),
    'area as text': (entry(area='100'), "`area` is not a number ('100')"),
    'no box': (without('annotations', 'bbox'), 'no `bbox`'),
    'box of texts': (entry(bbox=['2', '2', '10', '10']), '`bbox` is not four numbers'),
    'box of three': (entry(bbox=[2, 2, 10]), '`bbox` is not four numbers'),
    'no id': (without('annotations', 'id'), 'no `id`'),
    'unknown category': (entry(category_id=8), '`category_id` is not among the categories (8)'),
    'category as text': (entry(category_id='7'), "('7'); here a text, there a number"),
    'unknown image': (entry(image_id=77), '`image_id` is not among the images (77)'),
    'no object': (dropping('annotations', 5), 'no object'),
    'no height': (without('images', 'height'), 'no `height`'),
    'width of nothing': (lambda content: content['images'][1].update(width=0), '`width` is not above 0'),
    'no file name': (without('images', 'file_name'), 'no `file_name`'),
}


@pytest.mark.parametrize('kind', CRASHES)
def test_an_entry_with_a_gap_is_left_out_or_refused(kind):
    spoil, text = CRASHES[kind]
    content = small()
    spoil(content)
    examined = annotations.examine(content, masks=True)
    (defect,) = examined.defects
    assert text in defect.text
    part = defect.part
    position = defect.entries[0]
    assert len(examined.usable()[part]) == len(content[part]) - 1
    assert content[part][position] not in examined.usable()[part]
    ((level, said),) = examined.findings(evaluates=False, checked=True)
    assert level == 'warning'
    assert f'1 of {len(content[part])} {part}: {defect.text}: entry {position}' in said
    ((level, said),) = examined.findings(evaluates=True, checked=True)
    if kind == 'unknown image':  # of a file cut down to some images
        assert (level, said.endswith('No evaluated image has them')) == ('note', True)
    else:
        assert level == 'error'
        assert said.endswith('Evaluation leaves nothing out; repair or remove them')


@pytest.mark.parametrize('kind', ['no mask', 'no area', 'no height', 'box of texts'])
def test_the_toolboxs_own_class_would_fail_there(kind):
    content = small()
    CRASHES[kind][0](content)
    ((level, said),) = annotations.examine(content, masks=True).findings(evaluates=False, checked=False)
    assert (level, 'mmvmamba.CheckedCocoDataset leaves them out' in said) == ('error', True)


SOUND = {
    'polygon and crumbs': entry(segmentation=[*SQUARE, [1, 2]]),
    'uncompressed RLE': entry(segmentation=dict(size=[40, 60], counts=[2400]), iscrowd=1),
    'compressed RLE': entry(segmentation=dict(size=[40, 60], counts='PPYo0'), iscrowd=1),
    'keypoints': entry(keypoints=[1, 2, 2], num_keypoints=1),
    'ignored without a box': entry(ignore=1, bbox=None, area=None),
    'another category': dropping('categories', dict(id=1, name='cow')),
    'numbers that are not whole': entry(bbox=[2.5, 2.5, 10.25, 10.25], image_id=0.0),
}


@pytest.mark.parametrize('kind', SOUND)
def test_what_the_toolbox_takes_is_left_alone(kind):
    content = small()
    SOUND[kind](content)
    examined = annotations.examine(content, masks=True)
    assert not examined.faults
    assert not examined.defects
    assert examined.usable() == content


@pytest.mark.parametrize(
    'changes',
    [
        dict(area=0),
        dict(bbox=[2, 2, 0, 9]),
        dict(bbox=[500, 2, 9, 9]),
        dict(bbox=[float('nan')] * 4),
        dict(bbox=[-20, 2, 9, 9]),
    ],
    ids=['no area', 'no width', 'right of it', 'NaN', 'left of it'],
)
def test_boxes_outside_are_left_out_of_training_and_stay_in_evaluation(changes):
    content = small()
    entry(**changes)(content)
    examined = annotations.examine(content, masks=True)
    assert len(examined.usable()['annotations']) == len(content['annotations']) - 1
    assert [level for level, _ in examined.findings(False, True)] == ['warning']
    assert [level for level, _ in examined.findings(True, True)] == ['note']


def test_masks_of_categories_that_nobody_asked_for_are_not_looked_at():
    content = small()
    content['categories'].append(dict(id=8, name='box without a mask'))
    entry(category_id=8, segmentation=None)(content)
    (name,) = [one['name'] for one in content['categories'] if one['id'] == 7]
    assert not annotations.examine(content, masks=True, classes=[name]).defects
    assert annotations.examine(content, masks=True).defects


def test_a_metric_needs_to_know_crowds():
    content = small()
    without('annotations', 'iscrowd')(content)
    assert not annotations.examine(content, masks=True).defects
    ((level, said),) = annotations.examine(content, masks=True, metric=True).findings(True, True)
    assert level == 'error'
    assert 'no `iscrowd`: entry 4 (id 104, image 0)' in said


@pytest.mark.parametrize(
    'spoil, text',
    [
        (lambda c: c.pop('categories'), "has no `categories`; it has 'images', 'annotations'"),
        (lambda c: c.pop('images'), 'has no `images`'),
        (lambda c: c.pop('annotations'), 'has no `annotations`'),
        (lambda c: c.update(annotations={}), '`annotations` is a dict; expected a list'),
        (lambda c: c['categories'].append(dict(id=1, name='cat')), "several categories have the same name: 'cat'"),
        (lambda c: c['categories'].append(dict(id=7, name='cow')), 'several categories have the same id: 7'),
        (
            lambda c: c['categories'].append(dict(id=1)),
            '1 categories without an id, or without a name that is a text: entry 2',
        ),
        (lambda c: c['annotations'].append(c['annotations'][0]), '1 ids of annotations occur more than once: 100'),
        (lambda c: c['images'].append(c['images'][2]), '1 ids of images occur more than once: 2'),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else '',
)
def test_a_file_that_is_wrong_as_a_whole(spoil, text):
    content = small()
    spoil(content)
    said = list(annotations.examine(content, masks=True).findings(False, True))
    assert ('error', True) in {(level, text in one) for level, one in said}


def test_a_test_set_needs_no_annotations():
    content = small()
    del content['annotations']
    assert not annotations.examine(content, masks=True, annotated=False).faults


def test_more_than_half_is_an_error():
    content = small()
    for one in content['annotations'][:7]:
        del one['area']
    levels = [level for level, _ in annotations.examine(content, masks=False).findings(False, True)]
    assert levels == ['warning', 'error']


def test_a_file_cut_down_to_some_images_or_categories_is_none_the_worse():
    content = small()
    content['images'] = content['images'][:1]
    assert [level for level, _ in annotations.examine(content, masks=True).findings(False, True)] == ['warning']
    assert [level for level, _ in annotations.examine(content, masks=True).findings(True, True)] == ['note']
    for one in content['annotations']:
        one['category_id'] = 'cat'
    said = list(annotations.examine(content, masks=True).findings(False, True))
    assert said[-1] == ('error', 'none of 12 annotations can be used')


def test_examples_are_few(tmp_path):
    content = small(40, 30)
    for one in content['annotations'][:300]:
        del one['area']
    ((_, said),) = annotations.examine(content, masks=False).findings(False, True)
    assert said.startswith('300 of 1200 annotations: no `area`: entry 0 (id 100, image 0), ')
    assert 'and 295 more' in said


@pytest.mark.parametrize('text, said', [('{"images": [', 'no JSON'), ('[1, 2]', 'a list; expected an object')])
def test_other_files(text, said, tmp_path):
    path = tmp_path / 'a.json'
    path.write_text(text)
    with pytest.raises(DataError, match=rf'a\.json: {said}'):
        annotations.read(path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match='cannot be read'):
        annotations.read(tmp_path)


def test_a_parsed_file_is_handed_over_once_and_not_when_it_has_changed(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(small()))
    examined = annotations.examine(annotations.read(path), masks=True)
    annotations.hand_over(path, examined)
    assert annotations.take(path, masks=True, annotated=True) is examined
    assert annotations.take(path, masks=True, annotated=True) is not examined
    annotations.hand_over(path, examined)
    path.write_text(json.dumps(small(5)))
    assert len(annotations.take(path, masks=True, annotated=True).content['images']) == 5
    annotations.forget()


def test_costs_little():
    """The limit is a second per thousand; it takes a few milliseconds."""
    content = small(2000, 5)
    start = time.process_time()
    annotations.examine(content, masks=True, metric=True)
    assert time.process_time() - start < 2
