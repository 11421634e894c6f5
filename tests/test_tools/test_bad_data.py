"""Every kind of bad data in a copy of the shapes dataset, through the tools."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from PIL import Image
from tool_runs import DETECTION, ROOT, SEGMENTATION, dumpable, load_tool, run_tool, tiny

from mmvmamba.registry import DATASETS

SKIPPED = {'empty.jpg': 0, 'missing.jpg': 1, 'cut.jpg': 2, 'text.jpg': 3, 'other_size.jpg': 4}
TAKEN = {'grey.jpg': 5, 'deep.png': 6, 'turned.jpg': 7}


def spoil_images(folder, paths):
    """Turn the first images into what the names say; returns the new names by index."""
    paths[SKIPPED['empty.jpg']].write_bytes(b'')
    paths[SKIPPED['missing.jpg']].unlink()
    content = paths[SKIPPED['cut.jpg']].read_bytes()
    paths[SKIPPED['cut.jpg']].write_bytes(content[:-60])
    paths[SKIPPED['text.jpg']].write_text('no image')
    path = paths[SKIPPED['other_size.jpg']]
    cv2.imwrite(str(path), cv2.imread(str(path))[:-9])
    path = paths[TAKEN['grey.jpg']]
    cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    path = paths[TAKEN['deep.png']]  # content decides, not the name
    deep = cv2.imread(str(path)).astype(np.uint16) * 257
    path.write_bytes(cv2.imencode('.png', deep)[1].tobytes())
    path = paths[TAKEN['turned.jpg']]
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6  # to be shown after a quarter turn; the annotations are for the pixels as stored
    image.load()
    image.save(path, exif=exif)


@pytest.fixture(scope='module')
def bad(shapes, tmp_path_factory):
    """A copy of the small dataset with something wrong in nearly half its training images; validation is sound."""
    out = tmp_path_factory.mktemp('bad') / 'shapes'
    shutil.copytree(shapes, out)
    for number in range(13, 18):
        for folder, suffix in (('images', '.jpg'), ('annotations', '.png')):
            shutil.copy(
                out / f'ade/{folder}/training/{11:012d}{suffix}', out / f'ade/{folder}/training/{number:012d}{suffix}'
            )
    for folder in (out / 'coco/train2017', out / 'ade/images/training'):
        spoil_images(folder, sorted(folder.iterdir()))
    labels = sorted((out / 'ade/annotations/training').iterdir())
    outside = np.array(Image.open(labels[8]))
    outside[:5] = 77
    cv2.imwrite(str(labels[8]), outside)
    labels[9].unlink()
    path = out / 'coco/annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    images = {image['id']: image for image in content['images']}
    template = next(a for a in content['annotations'] if not a['iscrowd'])
    for number, (bbox, area) in enumerate([([2, 2, 0, 9], 0), ([5000, 2, 9, 9], 81), ([2, 2, 9, 9], 0)]):
        image = images[sorted(images)[10]]
        content['annotations'].append(
            dict(template, id=10**6 + number, image_id=image['id'], bbox=bbox, area=area, iscrowd=0)
        )
    lonely = sorted(images)[11]  # an image without annotations
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] != lonely]
    path.write_text(json.dumps(content))
    return out


def train(config, data, work_dir, *options):
    return run_tool(
        'train.py', config, '--work-dir', work_dir, '--cfg-options', *tiny(config, data),
        'train_dataloader.num_workers=2', *options,
    )  # fmt: skip


@pytest.mark.parametrize('config', [DETECTION, SEGMENTATION], ids=['detection', 'segmentation'])
def test_training_skips_and_says_so(config, bad, tmp_path):
    options = ['train_cfg.max_iters=4', 'train_cfg.val_interval=9']
    if config == DETECTION:
        filtered = 'train_dataloader.dataset.filter_cfg.filter_empty_gt=True'
        options = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=9', filtered]
    done = train(config, bad, tmp_path, *options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    log = next(tmp_path.glob('*/*.log')).read_text()
    folder = 'coco/train2017' if config == DETECTION else 'ade/images/training'
    skipped = list(range(5)) + ([8, 9] if config == SEGMENTATION else [])
    if config == SEGMENTATION:
        skipped.remove(1)  # a folder of images shows no missing one
    for index in range(12):
        image = f'{bad}/{folder}/{index + 1:012d}.jpg: ' in log
        label = f'{bad}/ade/annotations/training/{index + 1:012d}.png: ' in log
        assert (image or label) == (index in skipped), f'image {index}'
    assert log.count('bad sample skipped (1 so far)') == 1
    assert all(part in log for part in ('bad sample skipped (2 so far)', f'{bad}/{folder}/'))
    if config == DETECTION:
        assert len(re.findall(r': 3 of \d+ annotations: without area or outside their image', log)) == 1
        assert 'images, which have no annotation' in log


def test_resuming_replaces_bad_samples_as_the_uninterrupted_run_does(bad, tmp_path):
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    assert train(SEGMENTATION, bad, whole).returncode == 0
    resumed.mkdir()
    shutil.copy(whole / 'iter_3.pth', resumed)
    options = ['--cfg-options', *tiny(SEGMENTATION, bad), 'train_dataloader.num_workers=2']
    done = run_tool('train.py', SEGMENTATION, '--work-dir', resumed, '--resume', resumed / 'iter_3.pth', *options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert 'bad sample skipped' in done.stdout
    expected, found = (
        torch.load(folder / 'iter_6.pth', weights_only=False)['state_dict'] for folder in (whole, resumed)
    )
    assert all(torch.equal(found[name], value) for name, value in expected.items())


REASONS = {
    'empty.jpg': 'the file is empty',
    'missing.jpg': 'does not exist',
    'cut.jpg': 'the file is cut off',
    'text.jpg': 'no image that can be read',
    'other_size.jpg': 'the image is (',
}


@pytest.fixture(scope='module')
def datasets(bad):
    """The demo's training sets, loaded as for evaluation."""
    before = DefaultScope.get_current_instance()
    built = {}
    for config in (DETECTION, SEGMENTATION):
        cfg = dumpable(config, bad)
        init_default_scope(cfg.default_scope)
        dataset = dict(cfg.train_dataloader.dataset, pipeline=cfg.test_dataloader.dataset.pipeline, test_mode=True)
        built[config] = DATASETS.build(dataset)
    if before is not None:
        init_default_scope(before.scope_name)
    return built


def index_of(dataset, number):
    name = f'{number + 1:012d}.jpg'
    return next((i for i in range(len(dataset)) if dataset.get_data_info(i)['img_path'].endswith(name)), None)


BAD_LABELS = {8: 'its label file has labels 76; expected 0 to 7', 9: 'does not exist'}


def of_training_set(config, data):
    """Options of test.py for evaluating the training set."""
    options = [f'test_dataloader.{key}' for key in ('num_workers=0', 'persistent_workers=False', 'batch_size=1')]
    if config == DETECTION:
        annotations = 'annotations/instances_train2017.json'
        return [
            *options,
            f'test_dataloader.dataset.ann_file={annotations}',
            'test_dataloader.dataset.data_prefix.img=train2017/',
            f'test_evaluator.ann_file={data}/coco/{annotations}',
        ]
    prefix = 'test_dataloader.dataset.data_prefix'
    return [*options, f'{prefix}.img_path=images/training', f'{prefix}.seg_map_path=annotations/training']


def untrained(config, data, path):
    """A checkpoint of the model that the options of `tiny` build."""
    cfg = dumpable(config, data)
    init_default_scope(cfg.default_scope)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), path)
    return path


@pytest.mark.parametrize('config', [DETECTION, SEGMENTATION], ids=['detection', 'segmentation'])
def test_evaluation_names_all_files_at_once(config, bad, shapes, tmp_path, monkeypatch, capsys):
    """A user repairs what the message names, and everything is evaluated."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('LOCAL_RANK', '0')
    data = tmp_path / 'shapes'
    shutil.copytree(bad, data)
    images, labels = (
        ('coco/train2017', None) if config == DETECTION else ('ade/images/training', 'ade/annotations/training')
    )
    reasons = {SKIPPED[kind]: reason for kind, reason in REASONS.items()}
    if config == SEGMENTATION:
        del reasons[SKIPPED['missing.jpg']]  # a folder of images shows no missing one
        reasons |= BAD_LABELS
        reasons[SKIPPED['other_size.jpg']] = 'its image is ('
    arguments = [config, untrained(config, data, tmp_path / 'some.pth'), '--work-dir', tmp_path / 'work']
    options = ['--cfg-options', *tiny(config, data), *of_training_set(config, data)]
    evaluate = load_tool('test').main
    assert evaluate([*map(str, arguments), *options]) == 2
    said = capsys.readouterr().err
    for number, reason in reasons.items():
        name = f'{number + 1:012d}'
        place = labels if number in BAD_LABELS or 'its image' in reason else images
        suffix = '.jpg' if place == images else '.png'
        assert f'{data / place / name}{suffix}\n  error: {reason}' in said
        for folder, suffix in ((images, '.jpg'), (labels, '.png')):
            if folder is not None:
                shutil.copy(shapes / folder / (name + suffix), data / folder / (name + suffix))
    assert said.count('  error: ') == len(reasons)
    assert evaluate([*map(str, arguments), *options]) == 0


@pytest.mark.parametrize('kind', TAKEN)
@pytest.mark.parametrize('config', [DETECTION, SEGMENTATION], ids=['detection', 'segmentation'])
def test_unusual_images_are_taken(config, kind, datasets, shapes):
    dataset = datasets[config]
    sample = dataset[index_of(dataset, TAKEN[kind])]
    folder = 'coco/train2017' if config == DETECTION else 'ade/images/training'
    original = cv2.imread(str(shapes / folder / f'{TAKEN[kind] + 1:012d}.jpg'))
    assert sample['inputs'].shape[0] == 3
    assert tuple(sample['data_samples'].ori_shape) == original.shape[:2]


def test_a_file_that_goes_bad_later_ends_the_run_with_its_name(bad, shapes, tmp_path, monkeypatch, capsys):
    """Not with a worker's traceback."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('LOCAL_RANK', '0')
    data = tmp_path / 'shapes'
    shutil.copytree(shapes, data)
    spoiled = sorted((data / 'ade/images/validation').iterdir())[1]
    spoiled.write_bytes(spoiled.read_bytes()[:-60])
    tool = load_tool('test')
    monkeypatch.setattr(tool.launch, 'check_data', lambda cfg, splits: ['said before'])
    checkpoint = untrained(SEGMENTATION, data, tmp_path / 'some.pth')
    options = ['--work-dir', tmp_path / 'work', '--cfg-options', *tiny(SEGMENTATION, data)]
    assert tool.main([SEGMENTATION, *map(str, [checkpoint, *options])]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith('test.py: ')
    assert f'{spoiled}: the file is cut off. Evaluation leaves nothing out; repair or remove the file' in last
    assert 'said before' in next((tmp_path / 'work').glob('*/*.log')).read_text()
