"""Samples that cannot be used: replaced, until it is clear that the data set or the config is wrong."""

import numpy as np
import pytest
from mmengine.dataset import Compose
from PIL import Image

from mmvmamba.datasets.checks import BadSampleError, CheckedPipeline
from mmvmamba.datasets.report import DataError


class LoadWell:
    def __init__(self, bad=(), error=None):
        self.bad, self.error = bad, error

    def __call__(self, data):
        if data['number'] in self.bad:
            raise self.error or FileNotFoundError(data['img_path'])
        return dict(data)


@pytest.fixture
def image(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / 'a.png')
    return str(tmp_path / 'a.png')


def run(pipeline, numbers, image):
    return [pipeline(dict(number=number, img_path=image)) for number in numbers]


def checked(*transforms, strict=False):
    return CheckedPipeline(Compose(list(transforms)), strict=strict)


def test_nothing_but_bad_samples_at_the_start_stops_with_the_first_reason(image):
    pipeline = checked(LoadWell(range(100)))
    assert run(pipeline, range(19), image) == [None] * 19
    with pytest.raises(BadSampleError, match=r'the first 20 samples are bad.*the first: .*FileNotFoundError'):
        run(pipeline, [19], image)


def test_more_than_half_stops(image):
    pipeline = checked(LoadWell(range(1, 1000)))
    run(pipeline, [0] * 40, image)
    run(pipeline, range(1, 60), image)
    with pytest.raises(BadSampleError, match='60 of 100 samples are bad, so the data set or the config is wrong'):
        run(pipeline, [60], image)


def test_half_does_not(image):
    pipeline = checked(LoadWell(range(0, 2000, 2)))
    assert sum(sample is None for sample in run(pipeline, range(1, 1001), image)) == 500


@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize('error', [AssertionError('reduce_zero_label is False'), ValueError('reduce_zero_label is')])
def test_a_mistake_in_the_config_stops_at_once_with_its_own_words(error, strict, image):
    with pytest.raises(
        DataError, match=r'reduce_zero_label is.*The files can be read, so the mistake is in the config'
    ) as it:
        run(checked(LoadWell([3], error), strict=strict), [3], image)
    assert not isinstance(it.value, BadSampleError)


@pytest.mark.parametrize('error', [TypeError('a mistake'), KeyError('mask')])
def test_code_errors_are_not_taken_for_bad_data(error, image):
    with pytest.raises(type(error)):
        run(checked(LoadWell([3], error)), [3], image)
    with pytest.raises(ValueError, match='of code'):
        run(checked(LoadWell(), lambda data: (_ for _ in ()).throw(ValueError('of code'))), [3], image)


def test_whatever_a_loader_says_of_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / 'a.png').write_text('no image')
    pipeline = checked(LoadWell([3], AttributeError("'NoneType' object has no attribute 'squeeze'")))
    assert run(pipeline, [3], str(tmp_path / 'a.png')) == [None]


def test_transforms_that_refuse_everything_end(image):
    pipeline = checked(LoadWell(), lambda data: None)
    with pytest.raises(DataError, match='transforms refused 500 samples in a row'):
        run(pipeline, range(600), image)


def test_a_loader_that_gives_nothing_is_a_bad_sample(image):
    class LoadNothing:
        def __call__(self, data):
            return None

    with pytest.raises(BadSampleError, match='was not read'):
        run(checked(LoadNothing(), strict=True), [0], image)
