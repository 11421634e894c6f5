"""Names of the config, categories of the file, classes of the heads."""

import pytest

from mmvmamba.datasets import names

FILE = ['cat', 'dog', 'traffic light']


def said(classes, categories=FILE):
    return list(names.against_file(classes, categories))


def test_the_same_names_in_the_same_order_are_fine():
    assert said(FILE) == []


def test_training_on_a_part_takes_one_line():
    ((level, text),) = said(['dog'])
    assert (level, text) == ('note', "2 categories that the config does not name are left out: 'cat', 'traffic light'")


@pytest.mark.parametrize('name', ['Cat', ' cat', 'CAT ', 'c-at'])
def test_a_name_that_hardly_differs_is_pointed_at(name):
    ((level, text),) = said([name, 'dog', 'traffic light'])
    assert level == 'error'
    assert text.startswith(f"no category is called {name!r} (but 'cat': case, spaces or hyphens differ)")
    assert f"The config has 3: {name!r}, 'dog', 'traffic light'; the file has 3: 'cat', 'dog', 'traffic light'" in text


def test_another_order_is_refused_with_what_would_come_of_it():
    ((level, text),) = said(['dog', 'cat', 'traffic light'])
    assert level == 'error'
    assert "'cat' would be trained as 'dog', 'dog' would be trained as 'cat'" in text
    assert "The config has 3: 'dog', 'cat', 'traffic light'; the file has 3: 'cat', 'dog', 'traffic light'" in text


@pytest.mark.parametrize(
    'classes, text',
    [
        ('cat', "is the text 'cat'; expected a tuple of names, such as ('cat',)"),
        (('cat', 'cat'), "repeats ['cat']"),
        ((), 'is empty'),
        ((1, 2), 'expected a tuple of names'),
        (None, 'expected a tuple of names'),
    ],
)
def test_names_that_are_none(classes, text):
    assert text in names.classes_fault(classes)


def heads(model, classes=FILE, **metainfo):
    return [key for key, _ in names.against_heads(model, dict(classes=classes, **metainfo))]


def test_every_head_is_compared_wherever_it_is():
    model = dict(
        backbone=dict(num_classes=1000),
        rpn_head=dict(num_classes=1),
        roi_head=dict(bbox_head=[dict(num_classes=3), dict(num_classes=80)], mask_head=dict(num_classes=80)),
        decode_head=dict(num_classes=2),
    )
    assert heads(dict(detector=model)) == [
        'model.detector.roi_head.bbox_head[1].num_classes',
        'model.detector.roi_head.mask_head.num_classes',
        'model.detector.decode_head.num_classes',
    ]


def test_panoptic_heads_count_things_and_stuff():
    things = dict(classes=[*'abcde'], thing_classes=[*'abc'], stuff_classes=[*'de'])
    good = dict(num_things_classes=3, num_stuff_classes=2)
    assert heads(dict(panoptic_head=good, roi_head=dict(bbox_head=dict(num_classes=3))), **things) == []
    assert heads(dict(panoptic_head=dict(good, num_stuff_classes=53)), **things) == [
        'model.panoptic_head.num_things_classes'
    ]
    # Mask2Former on instances
    assert heads(dict(panoptic_head=dict(num_things_classes=3, num_stuff_classes=0))) == []
    assert heads(dict(panoptic_head=dict(num_things_classes=80, num_stuff_classes=0))) == [
        'model.panoptic_head.num_things_classes'
    ]


def test_heads_of_other_vocabularies_are_left_alone():
    assert heads(dict(language_model=dict(), bbox_head=dict(num_classes=256))) == []
    assert heads(dict(roi_head=dict(semantic_head=dict(num_classes=183)))) == []
    assert heads(dict(roi_head=dict(mask_head=dict(num_classes=1, class_agnostic=True)))) == []
    assert heads(dict(auxiliary_head=[dict(num_classes=2, boundary_threshold=0.1)])) == []
    assert heads(dict(decode_head=dict(num_classes=1, loss_decode=dict(use_sigmoid=True))), ['no', 'yes']) == []


def test_a_softmax_over_one_class_is_noticed():
    model = dict(
        decode_head=dict(num_classes=1), auxiliary_head=dict(num_classes=1, loss_decode=dict(use_sigmoid=True))
    )
    assert list(names.one_class(model, ['crack'])) == ['model.decode_head']
    assert list(names.one_class(model, ['crack', 'rest'])) == []
