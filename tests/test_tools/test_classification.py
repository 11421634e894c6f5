"""The third task: train, resume, test, draw, fine-tune, and then detect and segment with what was trained."""

import pickle

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from tool_runs import CLASSIFICATION, DETECTION, ROOT, SEGMENTATION, dumpable, load_tool

from mmvmamba import checkpoints
from mmvmamba.engine import launch

pytest.importorskip('mmpretrain')
CLASSES = ['circle', 'cross', 'square', 'star', 'triangle']


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('LOCAL_RANK', '0')
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """A very small classification set."""
    out = tmp_path_factory.mktemp('data')
    options = ['--classification', '--train', '10', '--val', '5', '--size', '64', '--seed', '3']
    assert load_tool('make_shapes_dataset').main([str(out), *options]) == 0
    return out


def config(folders, path, **changes):
    """The demo's config, tiny and in this process, with two epochs of two iterations; written to `path`."""
    cfg = dumpable(CLASSIFICATION, folders)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = 5
    cfg.merge_from_dict(changes)
    cfg.dump(path)
    return str(path)


def train(config, work_dir, *options):
    return load_tool('train').main([config, '--work-dir', str(work_dir), *options])


@pytest.fixture(scope='module')
def trained(folders, tmp_path_factory):
    """Config and work folder of an uninterrupted training."""
    out = tmp_path_factory.mktemp('trained')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv('LOCAL_RANK', '0')
        path = config(folders, out / 'config.py')
        assert train(path, out / 'work') == 0
    return path, out / 'work'


def test_folders_hold_one_shape_each(folders):
    for split, count in (('train', 2), ('val', 1)):
        assert sorted(path.name for path in (folders / 'cls' / split).iterdir()) == CLASSES
        for name in CLASSES:
            images = [cv2.imread(str(path)) for path in (folders / 'cls' / split / name).iterdir()]
            assert len(images) == count
            assert all(min(image.shape[:2]) >= 64 for image in images)
    tool = load_tool('make_shapes_dataset')
    scene = tool.render_one(np.random.default_rng(0), 64, 'star')
    assert [instance.name for instance in scene.instances] == ['star']
    assert scene.instances[0].visible.mean() > 0.03
    with pytest.raises(SystemExit):
        tool.main([str(folders), '--classification'])


def test_resuming_repeats_the_uninterrupted_run(trained, tmp_path):
    path, work = trained
    assert train(path, tmp_path, '--resume', str(work / 'epoch_1.pth')) == 0
    expected, found = (torch.load(w / 'epoch_2.pth', weights_only=False)['state_dict'] for w in (work, tmp_path))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_test_draws_every_image_and_right_beside_wrong(trained, tmp_path, capsys):
    path, work = trained
    options = ['--show-dir', str(tmp_path / 'pictures'), '--out', str(tmp_path / 'p.pkl'), '--work-dir', str(tmp_path)]
    assert load_tool('test').main([path, str(work / 'epoch_2.pth'), *options]) == 0
    said = capsys.readouterr().out
    assert 'accuracy/top1' in said
    assert f'pictures of 5 of 5 images: {tmp_path}/pictures/circle, ' in said
    assert f'right and wrong ones: {tmp_path}/pictures/right_and_wrong.png' in said
    for name in CLASSES:
        (picture,) = (tmp_path / 'pictures' / name).iterdir()
        assert min(cv2.imread(str(picture)).shape[:2]) >= 320
    assert cv2.imread(str(tmp_path / 'pictures/right_and_wrong.png')).std() > 20
    assert len(pickle.loads((tmp_path / 'p.pkl').read_bytes())) == 5
    refused = [path, str(work / 'epoch_2.pth'), '--out', str(tmp_path / 'p.txt')]
    assert load_tool('test').main(refused) == 2


def test_image_demo_prints_and_draws_five_classes(trained, folders, tmp_path, capsys):
    path, work = trained
    image = next((folders / 'cls/val/star').iterdir())
    arguments = [str(image), path, str(work / 'epoch_2.pth'), '--out', str(tmp_path), '--device', 'cpu']
    assert load_tool('image_demo').main(arguments) == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith(f'{image}: ')]
    found = dict(part.split() for part in line.removeprefix(f'{image}: ').split(', '))
    assert set(found) == set(CLASSES)
    assert sum(map(float, found.values())) == pytest.approx(1, abs=0.01)
    assert list(map(float, found.values())) == sorted(map(float, found.values()), reverse=True)
    drawn, original = cv2.imread(str(tmp_path / 'vis' / image.name)), cv2.imread(str(image))
    height, width = drawn.shape[:2]
    below = slice(2 * height // 3, None)  # of the text
    expected = cv2.resize(original, (width, height))[below]
    assert np.abs(drawn[below].astype(float) - expected).mean() < 8, 'red and blue stay where they are'


def test_checkpoints_are_held_to_the_model(trained, folders, tmp_path, capsys):
    _, work = trained
    checkpoint = str(work / 'epoch_2.pth')
    deeper = config(folders, tmp_path / 'deeper.py', **{'model.backbone.depths': [1, 1, 2, 1]})
    for tool in ('test', 'image_demo'):
        image = [str(next((folders / 'cls/val/star').iterdir()))] if tool == 'image_demo' else []
        options = ['--out', str(tmp_path / 'out')] if image else []
        assert load_tool(tool).main([*image, deeper, checkpoint, *options]) == 2
        assert 'layers.2.blocks.1.norm.weight' in capsys.readouterr().err


def test_classes_keep_the_order_of_training(trained, tmp_path, capsys):
    """Labels are numbers: the same names in another order would give classes each other's accuracy."""
    path, work = trained
    content = torch.load(work / 'epoch_2.pth', weights_only=False)
    meta = content['meta']['dataset_meta']
    assert checkpoints.class_names(work / 'epoch_2.pth') == CLASSES == list(meta['classes'])
    meta['classes'] = tuple(CLASSES[::-1])
    torch.save(content, tmp_path / 'turned.pth')
    for tool, options in (('test', ['--work-dir', str(tmp_path)]), ('analysis/resolution', [])):
        assert load_tool(tool).main([path, str(tmp_path / 'turned.pth'), *options]) == 2
        assert "in another order: 'triangle' is 'circle' here" in capsys.readouterr().err
    tool, turned = load_tool('train'), str(tmp_path / 'turned.pth')
    assert train(path, tmp_path, '--resume', turned) == 2
    assert "in another order: 'triangle' is 'circle' here" in capsys.readouterr().err
    options = ['--work-dir', str(tmp_path), '--cfg-options', f'load_from={turned}']
    _, notes = tool.configure(tool.parse_arguments([path, *options]))
    (note,) = notes  # a training may learn another order anew
    assert note.startswith(f'load_from {turned}: train_dataloader.dataset: ')
    assert "in another order: 'triangle' is 'circle' here" in note
    cfg = launch.load_config(path)
    assert launch.check_names(cfg, 'test', CLASSES) == []
    assert launch.check_names(cfg, 'test', None) == []
    (note,) = launch.check_names(cfg, 'test', ['disc', *CLASSES[1:]])
    assert note.endswith("the checkpoint learnt 1 classes under other names: 'disc' is 'circle' here")


def test_fine_tuning_on_other_classes(trained, folders, tmp_path, capsys):
    _, work = trained
    for split in ('train', 'val'):
        for name in CLASSES[:3]:
            source = next((folders / 'cls' / split / name).iterdir())
            (tmp_path / 'three' / split / name).mkdir(parents=True)
            (tmp_path / 'three' / split / name / source.name).write_bytes(source.read_bytes())
    changes = {f'{split}_dataloader.dataset.data_root': str(tmp_path / 'three') for split in ('train', 'val', 'test')}
    changes |= {'load_from': str(work / 'epoch_2.pth'), 'train_cfg.max_epochs': 1, 'train_dataloader.batch_size': 3}
    unfit = config(folders, tmp_path / 'unfit.py', **changes)
    assert train(unfit, tmp_path / 'work') == 2
    assert (
        "model.head.num_classes\n  error: is 5, but the dataset names 3: 'circle', 'cross', 'square' (its folders)"
        in (capsys.readouterr().err)
    )
    changes |= {'model.head.num_classes': 3, 'model.data_preprocessor.num_classes': 3}
    fit = config(folders, tmp_path / 'fit.py', **changes)
    assert train(fit, tmp_path / 'work') == 2
    said = capsys.readouterr().err
    assert 'its heads have other shapes, as with another number of classes' in said
    assert 'head.fc.weight: checkpoint (5, 64), model (3, 64)' in said
    assert train(fit, tmp_path / 'work', '--fresh-heads') == 0
    log = max((tmp_path / 'work').glob('*/*.log')).read_text()
    listed = log.partition('These tensors start from scratch:')[2].splitlines()[1:3]
    assert [line.strip() for line in listed] == ['head.fc.weight', 'head.fc.bias']


def test_top1_over_sizes(trained, capsys):
    path, work = trained
    options = ['--sides', '32', '64', '--linear-probe', '--epochs', '2']
    tool = load_tool('analysis/resolution')
    assert tool.main([path, str(work / 'epoch_2.pth'), *options]) == 0
    header, _, *rows = capsys.readouterr().out.strip().splitlines()[-4:]
    assert 'top-1, new linear layer' in header
    assert [row.split('|')[1].strip() for row in rows] == ['32', '64']
    assert tool.main([DETECTION, str(work / 'epoch_2.pth')]) == 2
    assert 'is no classifier' in capsys.readouterr().err


@pytest.mark.parametrize('task', [DETECTION, SEGMENTATION], ids=['detector', 'segmentor'])
def test_pretrain_then_detect(task, trained, shapes, tmp_path):
    """A classifier of ours is the backbone of a detector and a segmentor, by `init_cfg` alone, strictly."""
    _, work = trained
    checkpoint = str(work / 'epoch_2.pth')
    cfg = dumpable(task, shapes)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    expected = torch.load(checkpoint, weights_only=False)['state_dict']
    norms = [f'outnorm{i}.{kind}' for i in range(4) for kind in ('weight', 'bias')]
    loaded = model.backbone.state_dict()
    # as published: a dense backbone's output norms start fresh, that of the classifier is its head's
    assert set(loaded) - set(norms) == {
        name.removeprefix('backbone.') for name in expected if name.startswith('backbone.layers') or 'embed' in name
    }
    assert all(torch.equal(value, expected[f'backbone.{name}']) for name, value in loaded.items() if name not in norms)

    model.backbone.init_cfg['checkpoint'] = str(tmp_path / 'other.pth')
    broken = {name: value for name, value in expected.items() if 'layers.1.blocks' not in name}
    torch.save(dict(state_dict=broken), tmp_path / 'other.pth')
    model.backbone._is_init = False
    with pytest.raises(checkpoints.CheckpointError, match=r'missing:\n  layers\.1\.blocks\.0'):
        model.backbone.init_weights()
