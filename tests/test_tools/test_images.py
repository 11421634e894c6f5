"""Images that cannot be read: named, left out of a folder, never claimed; in every tool that takes images."""

import shutil

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from PIL import Image
from tool_runs import DETECTION, SEGMENTATION, dumpable, load_tool

from mmvmamba.datasets.images import UnreadableImageError, read_image, readable_images

CONFIGS = {'detection': DETECTION, 'segmentation': SEGMENTATION}


@pytest.fixture(autouse=True)
def _no_leaking_scope():
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='module')
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp('pictures') / 'good.jpg'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(picture, tmp_path):
    """A folder with one image, one cut off, and what is none."""
    (tmp_path / 'images' / 'more').mkdir(parents=True)
    shutil.copy(picture, tmp_path / 'images/good.jpg')
    (tmp_path / 'images/cut.jpg').write_bytes(picture.read_bytes()[:600])
    (tmp_path / 'images/text.PNG').write_text('no image')
    (tmp_path / 'images/empty.png').touch()
    (tmp_path / 'images/gone.jpg').symlink_to('nowhere.jpg')
    (tmp_path / 'images/notes.txt').write_text('notes')
    return tmp_path / 'images'


@pytest.fixture(scope='module')
def models(shapes, tmp_path_factory):
    """Config and initial weights of a tiny model for each task."""
    made = {}
    for task, config in CONFIGS.items():
        out = tmp_path_factory.mktemp(task)
        cfg = dumpable(config, shapes)
        cfg.dump(out / 'config.py')
        init_default_scope(cfg.default_scope)
        torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, out / 'weights.pth')
        DefaultScope._instance_dict.clear()
        made[task] = (str(out / 'config.py'), str(out / 'weights.pth'))
    return made


def test_an_image_is_read_as_the_pipelines_read_it(picture, tmp_path):
    assert read_image(picture).shape == (40, 60, 3)
    for mode, name in (('L', 'grey.png'), ('RGBA', 'alpha.png'), ('I;16', 'deep.png'), ('P', 'palette.png')):
        Image.new(mode, (7, 5)).save(tmp_path / name)
        assert read_image(tmp_path / name).shape == (5, 7, 3)
        assert read_image(tmp_path / name).dtype == np.uint8


@pytest.mark.parametrize(
    ('name', 'reason'),
    [('cut.jpg', 'cut off'), ('text.PNG', 'no image'), ('empty.png', 'empty'), ('more', 'no file')],
)
def test_what_is_no_image_is_named(name, reason, folder):
    with pytest.raises(UnreadableImageError, match=rf'{name}.*{reason}'):
        read_image(folder / name)


def test_a_folder_gives_what_can_be_read_and_names_the_rest(folder):
    readable, problems = readable_images(folder)
    assert readable == [folder / 'good.jpg']
    assert [next(name for name in ('cut', 'empty', 'gone', 'text') if name in p) for p in problems] == [
        'cut', 'empty', 'gone', 'text',
    ]  # fmt: skip


def test_folders_without_images_say_what_lies_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'has no image.*found nothing'):
        readable_images(tmp_path)
    for name in ('a.txt', 'b.txt', 'c'):
        (tmp_path / name).touch()
    (tmp_path / 'd').mkdir()
    with pytest.raises(FileNotFoundError, match=r'found 2 \.txt, 1 without suffix, 1 folders'):
        readable_images(tmp_path)
    with pytest.raises(FileNotFoundError, match='does not exist'):
        readable_images(tmp_path / 'none.jpg')
    with pytest.raises(UnreadableImageError, match=r'a\.txt: expected an image, whose name ends in'):
        readable_images(tmp_path / 'a.txt')


@pytest.mark.parametrize('task', CONFIGS)
def test_image_demo_draws_the_rest_of_a_folder_and_says_so(task, models, folder, tmp_path, capsys):
    main = load_tool('image_demo').main
    assert main([str(folder), *models[task], '--out', str(tmp_path / 'out'), '--device', 'cpu']) == 1
    said = capsys.readouterr()
    for name in ('cut.jpg', 'text.PNG', 'empty.png', 'gone.jpg'):
        assert f'left out: {folder / name}' in said.err or f'left out: image {folder / name}' in said.err
    assert f'Pictures of 1 of 5 images: {tmp_path}/out/vis' in said.out
    assert [path.name for path in (tmp_path / 'out/vis').iterdir()] == ['good.jpg']

    for name in ('cut.jpg', 'text.PNG', 'empty.png', 'gone.jpg'):
        (folder / name).unlink()
    assert main([str(folder), *models[task], '--out', str(tmp_path / 'again'), '--device', 'cpu']) == 0


@pytest.mark.parametrize('task', CONFIGS)
def test_image_demo_refuses_what_has_no_image(task, models, folder, tmp_path, capsys):
    main = load_tool('image_demo').main
    (tmp_path / 'nothing').mkdir()
    for path in (folder / 'cut.jpg', folder / 'notes.txt', tmp_path / 'nothing', folder / 'more', tmp_path / 'no.jpg'):
        assert main([str(path), *models[task], '--out', str(tmp_path / 'out')]) == 2
        said = capsys.readouterr()
        assert str(path) in said.err
        assert not said.out
    assert not (tmp_path / 'out').exists()


def test_activation_map_refuses_them_too(models, folder, tmp_path, capsys):
    main = load_tool('analysis/activation_map').main
    for name in ('notes.txt', 'cut.jpg', 'more', 'none.jpg'):
        assert main([str(folder / name), models['detection'][0], '--out', str(tmp_path / 'map.png')]) == 2
        assert name in capsys.readouterr().err
    assert not (tmp_path / 'map.png').exists()
