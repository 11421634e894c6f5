"""Label maps of other conventions than the config's."""

import numpy as np
import pytest
from PIL import Image

from mmvmamba.datasets import files, label_maps

mmseg = pytest.importorskip('mmseg')

CLASSES = ['background', 'object']


def write(folder, *maps):
    for i, labels in enumerate(maps):
        Image.fromarray(np.asarray(labels)).save(folder / f'{i}.png')
        Image.fromarray(np.zeros((*labels.shape[:2], 3), np.uint8)).save(folder / f'{i}.jpg')
    return [
        dict(
            img_path=str(folder / f'{i}.jpg'),
            seg_map_path=str(folder / f'{i}.png'),
            label_map=None,
            reduce_zero_label=False,
        )
        for i in range(len(maps))
    ]


def look(infos, reduces=False, classes=CLASSES):
    from mmseg.datasets.transforms import LoadAnnotations

    loader = LoadAnnotations(reduce_zero_label=reduces)
    return label_maps.look([dict(info, reduce_zero_label=reduces) for info in infos], loader, classes, 255, images=True)


def halves(low, high, dtype=np.uint8):
    labels = np.full((8, 10), low, dtype)
    labels[:, 5:] = high
    return labels


@pytest.mark.parametrize(
    'values, reduces, classes, doubt, advice',
    [
        ((0, 255), False, CLASSES, 'classes occur in none', 'write 1 for 255'),
        ((0, 255), True, CLASSES, '100.0 % of the pixels', 'write 1 for 255 and set reduce_zero_label=False'),
        (
            (0, 1),
            True,
            CLASSES,
            "1 of 2 classes occur in none of the 3 label files looked at (of 9): 'object'",
            'set it to False',
        ),
        ((0, 255), False, ['crack'], "is all 'crack', so there is nothing to learn", 'write 1 for 255'),
        ((0, 1), True, ['crack'], "is all 'crack'", ''),
        ((0, 1), False, CLASSES, None, ''),
        ((1, 2), True, CLASSES, None, ''),
    ],
    ids=['255', '255 reduced', '1 reduced', '255 one class', '1 reduced one class', 'sound', 'sound reduced'],
)
def test_what_is_legal_and_most_often_a_mistake(values, reduces, classes, doubt, advice, tmp_path):
    infos = write(tmp_path, *[halves(*values)] * 3)
    looked = look(infos, reduces, classes)
    assert (looked.maps, looked.bad) == (3, [])
    said = label_maps.doubts(looked, classes, 9, 255)
    assert any(level == 'warning' and doubt in one for level, one in said) if doubt else not said
    written, hint = label_maps.convention([info['seg_map_path'] for info in infos], looked, reduces, len(classes), 255)
    assert f'hold {values[0]}, {values[1]}, with reduce_zero_label={reduces}' in written
    assert advice in hint


def test_rare_classes_may_be_absent_from_a_sample(tmp_path):
    classes = [str(i) for i in range(4)]
    looked = look(write(tmp_path, halves(0, 1), halves(1, 2)), classes=classes)
    assert [level for level, _ in label_maps.doubts(looked, classes, 9, 255)] == ['note']
    assert [level for level, _ in label_maps.doubts(looked, classes, 2, 255)] == ['warning']  # all were looked at
    half = look(write(tmp_path, halves(0, 1)), classes=classes)
    assert [level for level, _ in label_maps.doubts(half, classes, 9, 255)] == ['warning']


def test_labels_from_one_need_reduce_zero_label(tmp_path):
    infos = write(tmp_path, halves(1, 2))
    looked = look(infos)
    assert 'labels 2; expected 0 to 1' in looked.bad[0][1]
    assert 'need it set to True' in label_maps.convention([infos[0]['seg_map_path']], looked, False, 2, 255)[1]


@pytest.mark.parametrize(
    'labels, reason',
    [
        (np.zeros((8, 10, 3), np.uint8), 'has shape (8, 10, 3); expected (H, W), one label a pixel (a colour mask'),
        (np.zeros((8, 10, 4), np.uint8), 'has shape (8, 10, 4)'),
        (halves(0, 77), 'labels 77; expected 0 to 1'),
        (halves(0, 256, np.uint16), 'labels 0 to 256; the toolbox keeps 8 bits'),
        (halves(0, 1, np.uint16), None),
        (halves(False, True, bool), None),
    ],
    ids=['RGB', 'RGBA', 'outside', 'deep', 'sixteen bits', 'one bit'],
)
def test_a_map_that_cannot_be_used_is_refused_with_its_reason(labels, reason, tmp_path):
    looked = look(write(tmp_path, labels))
    assert looked.maps == (reason is None)
    assert [(reason in said, path.endswith('0.png')) for path, said in looked.bad] == ([(True, True)] if reason else [])


def test_a_map_of_another_size_than_its_image(tmp_path):
    infos = write(tmp_path, halves(0, 1))
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(infos[0]['img_path'])
    assert look(infos).bad[0][1] == 'its image is (5, 6) (H, W), but the label map is (8, 10)'


def test_a_mistake_in_the_config_is_not_taken_for_a_bad_file(tmp_path):
    from mmseg.datasets.transforms import LoadAnnotations

    infos = write(tmp_path, halves(0, 1))
    looked = label_maps.look(infos, LoadAnnotations(reduce_zero_label=True), CLASSES, 255, images=True)
    assert not looked.bad
    assert 'AssertionError: Initialize dataset with `reduce_zero_label` as False' in looked.mistake
    (tmp_path / '0.png').write_text('no image')
    assert look(infos).bad[0][1] == 'no image that can be read'


@pytest.mark.parametrize('kind', ['jpg', 'png'])
def test_a_missing_end_is_noticed_whatever_the_decoder_does(kind, tmp_path):
    path = tmp_path / f'image.{kind}'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    assert not files.is_cut(path)
    path.write_bytes(path.read_bytes() + bytes(100))  # cameras append things
    assert files.image_fault(str(path)) is None
    path.write_bytes(path.read_bytes()[:-120])
    assert files.image_fault(str(path)) == 'the file is cut off'


def test_folders_say_what_they_have(tmp_path):
    assert files.suffixes(tmp_path) == 'the folder is empty'
    assert files.suffixes(tmp_path / 'x') == 'the folder does not exist'
    (tmp_path / 'a.JPG').touch()
    assert files.suffixes(tmp_path) == 'the folder has .JPG (1), for example a.JPG'
    assert files.missing([str(tmp_path / name) for name in ('a.JPG', 'a.jpg', 'x/b.jpg')]) == [
        str(tmp_path / name) for name in ('a.jpg', 'x/b.jpg')
    ]


def test_a_sample_is_spread_evenly():
    assert files.spread(5, 9) == [0, 1, 2, 3, 4]
    assert files.spread(101, 3) == [0, 50, 100]
    assert files.spread(9, 1) == [0]
