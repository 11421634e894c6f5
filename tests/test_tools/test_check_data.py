"""Data that does not mean what the config says: one report by file, from check_data.py and before train.py starts."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
from mmengine.runner import Runner
from PIL import Image
from tool_runs import DETECTION, ROOT, SEGMENTATION, load_tool, tiny

TRAIN, VAL = 'annotations/instances_train2017.json', 'annotations/instances_val2017.json'


@pytest.fixture
def data(shapes, tmp_path, monkeypatch):
    """A copy of the small dataset to spoil."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('LOCAL_RANK', '0')
    return shutil.copytree(shapes, tmp_path / 'shapes')


def options(config, data, *more):
    root = data / ('coco' if config == DETECTION else 'ade')
    return [config, '--cfg-options', *tiny(config, data), *(str(one).replace('ROOT', str(root)) for one in more)]


def check(capsys, config, data, *more, splits=('train', 'val')):
    """Exit status and report: what is said, by place."""
    status = load_tool('check_data').main([*options(config, data, *more), '--split', *splits])
    said, place = {}, None
    for line in capsys.readouterr().out.splitlines()[:-1]:
        if line.startswith('  '):
            said[place].append(line.strip())
        else:
            place = line.replace(f'{data}/', '')
            said.setdefault(place, [])
    return status, said


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def holds(said, place, *parts):
    """Whether a finding at a place has all these parts; each is one finding's."""
    return any(all(part in line for part in parts) for line in said.get(place, []))


def spoil_detection(root):
    """Each kind of defect at once; returns where it should be named, and how."""
    images = sorted((root / 'train2017').iterdir())
    images[0].write_bytes(b'')
    images[1].unlink()
    images[2].write_bytes(images[2].read_bytes()[:-60])
    images[3].write_text('no image')
    cv2.imwrite(str(images[4]), cv2.imread(str(images[4]))[:-9])

    def train(content):
        content['categories'][0]['name'] = 'Circle'
        content['categories'].append(dict(id=99, name='blob'))
        things = [one for one in content['annotations'] if not one['iscrowd']]
        things[0]['segmentation'] = []
        del things[1]['area']
        things[2]['bbox'] = ['1', '2', '3', '4']
        things[3]['category_id'] = 1000
        things[4]['image_id'] = 1000
        things[5].update(area=0, bbox=[0, 0, 0, 0])
        things[6]['segmentation'] = dict(size=[1, 1], counts=[1])
        del content['images'][11]['height']

    def val(content):
        for one in content['annotations']:
            del one['iscrowd']
        del content['annotations'][0]['area']

    edit(root / TRAIN, train)
    edit(root / VAL, val)
    folder = f'coco/{images[0].parent.name}'
    left_out = 'warning: 1 of'
    return {
        f'{folder}/{images[0].name}': ('warning', 'the file is empty'),
        f'{folder}/{images[1].name}': ('warning', 'does not exist'),
        f'{folder}/{images[2].name}': ('warning', 'the file is cut off'),
        f'{folder}/{images[3].name}': ('warning', 'no image that can be read'),
        f'{folder}/{images[4].name}': ('warning', 'the image is (', 'but its annotation says'),
        f'coco/{TRAIN}': [
            ("error: no category is called 'circle' (but 'Circle'", "the file has 6: 'Circle', 'triangle'"),
            (left_out, 'annotations: no `segmentation`: entry'),
            (left_out, 'annotations: no `area`: entry'),
            (left_out, 'annotations: `bbox` is not four numbers'),
            (left_out, '`category_id` is not among the categories (1000)'),
            (left_out, '`image_id` is not among the images (1000)'),
            (left_out, 'without area or outside their image'),
            (left_out, 'the `size` of an RLE'),
            (left_out, '12 images: no `height`: entry 11 (id 12, 000000000012.jpg)'),
        ],
        f'coco/{VAL}': [('error', 'annotations: no `iscrowd`'), ('error: 1 of', 'annotations: no `area`: entry 0')],
        'model.roi_head.bbox_head.num_classes': ("error: is 3, but the dataset names 5: 'circle'",),
    }


def spoil_segmentation(root):
    """As `spoil_detection`."""
    images = sorted((root / 'images/training').iterdir())
    labels = sorted((root / 'annotations/training').iterdir())
    for number in range(13, 22):  # so that more than half are sound
        shutil.copy(images[11], images[0].with_name(f'{number:012d}.jpg'))
        shutil.copy(labels[11], labels[0].with_name(f'{number:012d}.png'))
    images[0].write_bytes(b'')
    images[1].write_bytes(images[1].read_bytes()[:-60])
    images[2].write_text('no image')
    cv2.imwrite(str(images[3]), cv2.imread(str(images[3]))[:-9])
    labels[4].unlink()
    labels[5].write_text('no image')
    maps = [np.array(Image.open(path)) for path in labels[:4] + labels[6:12]][4:]
    Image.fromarray(np.stack([maps[0]] * 3, -1)).save(labels[6])
    Image.fromarray(np.full_like(maps[1], 77)).save(labels[7])
    Image.fromarray(np.full_like(maps[2], 300, np.uint16)).save(labels[8])
    for path in labels[:4] + labels[9:] + sorted((root / 'annotations/training').iterdir())[11:]:
        image = np.array(Image.open(path))
        Image.fromarray(np.where(image == 8, 1, image)).save(path)
    for path in (root / 'images/validation').iterdir():
        path.rename(path.with_suffix('.JPG'))
    images_folder, labels_folder = 'ade/images/training', 'ade/annotations/training'
    return {
        f'{images_folder}/{images[0].name}': ('warning', 'the file is empty'),
        f'{images_folder}/{images[1].name}': ('warning', 'the file is cut off'),
        f'{images_folder}/{images[2].name}': ('warning', 'no image that can be read'),
        f'{labels_folder}/{labels[3].name}': ('warning', 'its image is (', 'but the label map is'),
        f'{labels_folder}/{labels[4].name}': ('warning', 'does not exist'),
        f'{labels_folder}/{labels[5].name}': ('warning', 'no image that can be read'),
        f'{labels_folder}/{labels[6].name}': ('warning', f'shape {(*maps[0].shape, 3)}', 'a colour mask'),
        f'{labels_folder}/{labels[7].name}': ('warning', 'labels 76; expected 0 to 7'),
        f'{labels_folder}/{labels[8].name}': ('warning', 'labels 300 to 300; the toolbox keeps 8 bits'),
        labels_folder: ('of 8 classes occur in none of the', "'cross'"),
        'ade/images/validation': ('error: no image: looked in', "end with '.jpg'; the folder has .JPG (4)"),
        'model.decode_head.num_classes': ("error: is 5, but the dataset names 8: 'sky'",),
    }


@pytest.mark.parametrize('config', [DETECTION, SEGMENTATION], ids=['detection', 'segmentation'])
def test_one_report_lists_all_defects_before_training(config, data, capsys, monkeypatch):
    if config == DETECTION:
        expected, heads = spoil_detection(data / 'coco'), 'model.roi_head.bbox_head.num_classes=3'
    else:
        expected, heads = spoil_segmentation(data / 'ade'), 'model.decode_head.num_classes=5'
    status, said = check(capsys, config, data, heads)
    assert status == 2
    for place, findings in expected.items():
        for parts in findings if isinstance(findings, list) else [findings]:
            assert holds(said, place, *parts), f'{place}: {parts}\n{said.get(place)}'

    monkeypatch.setattr(Runner, 'from_cfg', lambda cfg: pytest.fail('a runner was built'))
    assert load_tool('train').main(options(config, data, heads)) == 2
    shown = capsys.readouterr().err
    for place, lines in said.items():
        for line in lines:
            level = line.partition(':')[0]
            assert level in ('info', 'note') or line in shown, f'{place}: {line}'


DETECTION_NAMES = {
    'another order': (
        "train_dataloader.dataset.metainfo.classes=('star','circle','square','cross','triangle')",
        f'coco/{TRAIN}',
        "'circle' would be trained as 'star'",
    ),
    'names of the class': (
        'val_dataloader.dataset.metainfo=None',
        f'coco/{VAL}',
        "no category is called 'person'",
    ),
    'one text': (
        'train_dataloader.dataset.metainfo.classes=circle',
        'train_dataloader.dataset',
        "is the text 'circle'",
    ),
    'too few': ('model.roi_head.mask_head.num_classes=3', 'model.roi_head.mask_head.num_classes', 'is 3, but'),
    'too many': ('model.roi_head.bbox_head.num_classes=80', 'model.roi_head.bbox_head.num_classes', 'is 80, but'),
    "the toolbox's class": (
        ('train_dataloader.dataset.type=CocoDataset', 'train_dataloader.dataset.metainfo=None'),
        f'coco/{TRAIN}',
        "no category is called 'person'",
    ),
    "the metric's file": (f'val_evaluator.ann_file=ROOT/{TRAIN}', f'coco/{TRAIN}', None),
}


@pytest.mark.parametrize('kind', DETECTION_NAMES)
def test_names_that_do_not_fit_are_refused(kind, data, capsys):
    change, place, text = DETECTION_NAMES[kind]
    status, said = check(capsys, DETECTION, data, *([change] if isinstance(change, str) else change))
    assert status == (0 if text is None else 2), said
    assert text is None or holds(said, place, 'error: ', text), said


def test_a_metric_that_reads_another_file_than_the_dataset(data, capsys):
    content = json.loads((data / 'coco' / VAL).read_text())
    content['images'] = content['images'][1:]
    gone = content['annotations'][0]['image_id']
    content['annotations'] = [one for one in content['annotations'] if one['image_id'] != gone]
    (data / 'coco/part.json').write_text(json.dumps(content))
    status, said = check(capsys, DETECTION, data, 'val_evaluator.ann_file=ROOT/part.json')
    assert status == 2
    assert holds(said, 'coco/part.json', 'lacks 1 of 4 images that val_dataloader.dataset evaluates')


def test_a_prefix_that_nothing_reads_is_not_looked_for(data, capsys):
    spare = ('train_dataloader.dataset.data_prefix.seg=nowhere/', 'train_dataloader.dataset.data_prefix.depth=no/')
    assert check(capsys, DETECTION, data, *spare)[0] == 0
    status, said = check(capsys, DETECTION, data, 'train_dataloader.dataset.proposal_file=p.pkl')
    assert (status, next(iter(said))) == (2, 'coco/p.pkl')


def test_training_on_a_part_is_normal_and_takes_a_line(data, capsys):
    def add(content):
        content['categories'].append(dict(id=99, name='blob'))

    edit(data / 'coco' / TRAIN, add)
    status, said = check(capsys, DETECTION, data)
    assert status == 0
    assert [line for line in said[f'coco/{TRAIN}'] if 'note' in line] == [
        "note: 1 categories that the config does not name are left out: 'blob'"
    ]


@pytest.mark.parametrize(
    'config, change, text',
    [
        (
            DETECTION,
            'train_dataloader.dataset.filter_cfg.min_size=5000',
            r'nothing is left of 12 images.*min_size=5000',
        ),
        (SEGMENTATION, 'train_dataloader.dataset.img_suffix=.jpeg', r"end with '\.jpeg'; the folder has \.jpg \(12\)"),
        (
            SEGMENTATION,
            'train_dataloader.dataset.reduce_zero_label=False',
            r'AssertionError: Initialize.*mistake is in the config',
        ),
        (
            SEGMENTATION,
            'train_dataloader.dataset.seg_map_suffix=.PNG',
            r'12 of 12 files cannot be used.*has \.png \(12\)',
        ),
        (SEGMENTATION, 'val_dataloader.dataset.metainfo=None', r'`classes` should be specified'),
    ],
    ids=['all small', 'suffix', 'reduce_zero_label', 'suffix of labels', 'no names'],
)
def test_a_data_set_that_is_wrong_as_a_whole(config, change, text, data, capsys):
    status, said = check(capsys, config, data, change)
    assert status == 2
    assert any(line.startswith('error') and re.search(text, line) for lines in said.values() for line in lines), said


def test_a_test_set_without_labels_needs_none(data, capsys, tmp_path):
    shutil.rmtree(data / 'ade/annotations/validation')
    status, said = check(capsys, SEGMENTATION, data, splits=['test'])
    place, text = 'ade/annotations/validation', 'error: does not exist (test_dataloader.dataset.seg_map_path)'
    assert (status, said[place]) == (2, [text])
    unlabelled = tmp_path / 'unlabelled.py'
    unlabelled.write_text(
        f"_base_ = '{ROOT / SEGMENTATION}'\n"
        "pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]\n"
        'test_dataloader = dict(dataset=dict(pipeline=pipeline))\n'
    )
    status, said = check(
        capsys, str(unlabelled), data, f'test_dataloader.dataset.data_root={data}/ade', splits=['test']
    )
    assert status == 0
    assert 'info: 4 images' in said['ade/images/validation']


def test_the_toolboxs_class_would_fail_at_a_bad_file(data, capsys):
    path = sorted((data / 'ade/annotations/training').iterdir())[2]
    path.write_text('no image')
    place = f'ade/annotations/training/{path.name}'
    status, said = check(capsys, SEGMENTATION, data)
    assert (status, said[place]) == (1, ['warning: no image that can be read; left out of training'])
    status, said = check(capsys, SEGMENTATION, data, 'train_dataloader.dataset.type=mmseg.BaseSegDataset')
    assert (status, said[place]) == (2, ['error: no image that can be read'])


def test_an_evaluation_that_would_leave_things_out_is_noticed(data, capsys):
    status, said = check(capsys, SEGMENTATION, data, 'val_dataloader.dataset.test_mode=False')
    assert (status, holds(said, 'val_dataloader.dataset', 'warning: should have test_mode=True')) == (1, True)


def test_the_way_out_looks_for_missing_files_only(data, capsys, monkeypatch):
    monkeypatch.setattr(Runner, 'from_cfg', lambda cfg: pytest.fail('a runner was built'))
    tool, change = load_tool('train'), ('model.decode_head.num_classes=5', 'check_data=False')
    assert tool.main(options(SEGMENTATION, data, *change, 'train_dataloader.dataset.data_root=nowhere')) == 2
    assert 'does not exist' in capsys.readouterr().err
    assert tool.main(options(SEGMENTATION, data, *change[:1])) == 2
    assert 'check_data = False' in capsys.readouterr().err
    monkeypatch.setattr(Runner, 'from_cfg', lambda cfg: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # so far it comes
        tool.main(options(SEGMENTATION, data, *change))


def test_sound_data_is_left_alone(data, capsys):
    for config in (DETECTION, SEGMENTATION):
        status, said = check(capsys, config, data, splits=['train', 'val', 'test'])
        assert status == 0
        assert all(line.startswith(('info', 'note')) for lines in said.values() for line in lines)


def test_a_config_that_cannot_be_read(tmp_path, capsys):
    assert load_tool('check_data').main([str(tmp_path / 'none.py')]) == 2
    assert 'does not exist' in capsys.readouterr().err
