"""Class folders: what mmpretrain would train under a wrong name, or stumble over, is named before it starts."""

import shutil

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from mmvmamba.datasets import audit, class_folders, names
from mmvmamba.datasets.report import DataError

pytest.importorskip('mmpretrain')
CLASSES = ('bird', 'cat', 'dog')
PIPELINE = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                picture = rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(picture).save(tmp_path / split / name / f'{i}.png')
    return tmp_path


def config(root, classes=None, num_classes=3, kind='mmvmamba.CheckedCustomDataset', **changes):
    metainfo = {} if classes is None else dict(metainfo=dict(classes=classes))
    dataset = dict(type=kind, data_root=str(root), pipeline=PIPELINE, **metainfo, **changes)
    head = dict(type='LinearClsHead', num_classes=num_classes)
    loaders = {
        f'{split}_dataloader': dict(dataset=dict(dataset, data_prefix=split, test_mode=split == 'val'))
        for split in ('train', 'val')
    }
    return Config(
        dict(default_scope='mmpretrain', model=dict(data_preprocessor=dict(num_classes=3), head=head), **loaders)
    )


def said(cfg, level='error'):
    """What is found of a level, as PLACE: TEXT."""
    return [f'{found.place}: {found.text}' for found in audit.audit(cfg, ('train', 'val')).of(level)]


@pytest.mark.parametrize('kind', ['mmvmamba.CheckedCustomDataset', 'CustomDataset'])
def test_sound_folders_are_left_alone(kind, root):
    for cfg in (config(root, kind=kind), config(root, CLASSES, kind=kind), config(root, ('finch', 'puma', 'wolf'))):
        assert not said(cfg)
        assert not said(cfg, 'warning')
        assert f'{root}/train: 9 images of 3 classes' in said(cfg, 'info')


def test_likeliest_classes_are_as_many_as_there_are(root):
    """mmpretrain says so after the first epoch, by an index out of range."""
    cfg = config(root)
    cfg.val_evaluator = dict(type='Accuracy', topk=(1, 3))
    assert not said(cfg)
    for evaluator, key in (
        (dict(type='Accuracy', topk=(1, 5)), ''),
        ([dict(type='mmpretrain.Accuracy', topk=5)], '[0]'),
    ):
        cfg.val_evaluator = evaluator
        (error,) = said(cfg)
        assert error == (
            f"val_evaluator{key}.topk: asks for the likeliest 5 of 3: 'bird', 'cat', 'dog'; expected at most that"
        )


def test_a_name_that_imagenet_gives_to_two_classes_is_no_fault(root, monkeypatch):
    from mmvmamba.datasets import CheckedImageNet

    monkeypatch.setattr(CheckedImageNet, 'METAINFO', dict(classes=('crane', 'cat', 'crane')))
    assert not said(config(root, kind='mmvmamba.CheckedImageNet'))
    texts = said(config(root, ('crane', 'cat', 'crane')))
    assert texts
    assert all("repeats ['crane']" in text for text in texts)


def test_heads_and_preprocessor_are_compared_with_names_and_with_folders(root):
    for classes, whose in ((CLASSES, ''), (None, ' (its folders)')):
        (text,) = said(config(root, classes, num_classes=4))
        assert text.startswith(
            f"model.head.num_classes: is 4, but the dataset names 3: 'bird', 'cat', 'dog'{whose} (train_dataloader"
        )
    cfg = config(root)
    cfg.model.data_preprocessor.num_classes = 1000
    assert said(cfg)[0].startswith('model.data_preprocessor.num_classes: is 1000, but the dataset names 3')
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
    assert said(cfg)[0].startswith('model.data_preprocessor.num_classes: is 1000')


def test_another_order_of_names_is_refused_with_what_would_come_of_it(root):
    texts = said(config(root, ('cat', 'bird', 'dog')))
    assert len(texts) == 2  # train and val
    assert f"{root}/train: labels are handed out in the folders' alphabetical order" in texts[0]
    assert "images of 'bird' would be called 'cat', images of 'cat' would be called 'bird'" in texts[0]
    with pytest.raises(DataError, match="images of 'bird' would be called 'cat'"):
        build(config(root, ('cat', 'bird', 'dog')).train_dataloader.dataset)


def build(dataset):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return DATASETS.build(dataset)


@pytest.mark.parametrize('classes', [None, CLASSES])
def test_a_class_that_evaluation_lacks_shifts_labels(classes, root):
    shutil.rmtree(root / 'val/bird')
    text = ' '.join(said(config(root, classes)))
    assert 'val' in text
    assert ("2 folders for 3 names; without a folder: 'bird'" if classes else "lacks 'bird'") in text


def test_folders_of_other_names_than_training(root):
    (root / 'val/dog').rename(root / 'val/ant')
    text = ' '.join(said(config(root, ('finch', 'puma', 'wolf'))))
    assert f"{root}/val: its class folders are not those of training: lacks 'dog' and adds 'ant'" in text


def test_empty_and_hidden_folders(root):
    for path in (root / 'train/cat').iterdir():
        path.rename(path.with_suffix('.webp'))
    (warning,) = said(config(root), 'warning')
    assert warning.startswith(f"{root}/train: 1 of 3 classes have no image, so a head learns never to say them: 'cat'")
    (root / 'train/.ipynb_checkpoints').mkdir()
    assert any("'.ipynb_checkpoints' would be a class" in text for text in said(config(root)))


def test_a_folder_of_images_without_classes(root):
    for split in ('train', 'val'):
        for path in (root / split).rglob('*.png'):
            path.rename(root / split / f'{path.parent.name}{path.name}')
        for name in CLASSES:
            (root / split / name).rmdir()
    text = ' '.join(said(config(root)))
    assert f'{root}/train: has no folder, expected one a class; the folder has .png (9)' in text


def test_unreadable_images_are_left_out_of_training_and_stop_evaluation(root):
    bad = [root / split / 'dog/1.png' for split in ('train', 'val')]
    for path in bad:
        path.write_bytes(path.read_bytes()[:-20])
    cfg = config(root)
    assert said(cfg, 'warning') == [f'{bad[0]}: the file is cut off; left out of training']
    assert said(cfg) == [f'{bad[1]}: the file is cut off']
    trained, evaluated = (build(cfg[f'{split}_dataloader'].dataset) for split in ('train', 'val'))
    assert all(trained[i]['inputs'].shape == (3, 9, 9) for i in range(9))  # others take its place
    with pytest.raises(DataError, match=r'dog/1\.png: the file is cut off. Evaluation leaves nothing out'):
        [evaluated[i] for i in range(9)]


def test_several_labels_an_image():
    infos = [dict(img_path='a.png', gt_label=[0, 2]), dict(img_path='b.png', gt_label=[1, 3])]
    (found,) = class_folders.label_findings(infos, list(CLASSES), evaluates=False)
    assert found[0] == 'error'
    assert found[1].startswith('has labels 3, such as that of b.png; expected 0 to 2')
    assert not list(class_folders.label_findings([dict(img_path='a.png')], list(CLASSES), evaluates=False))
    (found,) = class_folders.label_findings([*infos[:1], dict(img_path='c.png')], list(CLASSES), False, asked=True)
    assert found == ('error', 'has 1 of 2 images without a label (gt_label), the first: c.png')


def test_lists_of_files_and_labels(root):
    (root / 'list.txt').write_text('bird/0.png 0\ndog/1.png 3\ncat/7.png 1\n')
    cfg = config(root, CLASSES, ann_file='list.txt')
    texts = said(cfg)
    assert any('has labels 3, such as that of' in text and 'expected 0 to 2' in text for text in texts)
    assert any('cat/7.png: does not exist' in text for text in texts + said(cfg, 'warning'))
    missing = said(config(root, CLASSES, ann_file='none.txt'))
    assert any(
        text.startswith(f'{root}/none.txt: does not exist (train_dataloader.dataset.ann_file)') for text in missing
    )


def test_imagenets_folders_are_called_otherwise_than_its_classes(root):
    cfg = config(root, CLASSES, kind='mmvmamba.CheckedImageNet')
    for split in ('train', 'val'):
        for number, name in enumerate(CLASSES):
            (root / split / name).rename(root / split / f'n{number:08d}')
        dataset = cfg[f'{split}_dataloader'].dataset
        del dataset['data_prefix']
        dataset.split = split
    assert not said(cfg)
    assert f'{root}/val: 9 images of 3 classes' in said(cfg, 'info')


def test_missing_folders_are_missing_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf'{tmp_path}/train\n  error: does not exist .*\nHow to get it: ask'):
        audit.check(config(tmp_path), ('train',), 'ask')


def test_names_that_differ_wholly_are_taken_by_position():
    assert not list(names.against_folders(['a', 'b'], ['n1', 'n2']))
    ((level, text),) = names.against_folders(['a', 'n1'], ['n1', 'n2'])
    assert level == 'error'
    assert "images of 'n1' would be called 'a'" in text
