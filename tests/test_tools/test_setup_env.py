"""The set-up program's decisions; the set-up itself runs before any test can."""

import re

import pytest
from tool_runs import ROOT, load_tool

setup_env = load_tool('setup_env')


def test_every_package_of_the_tests_is_pinned():
    pinned = {re.split('[=<>;]', line)[0].strip().lower() for line in setup_env.CONSTRAINTS.read_text().splitlines()}
    text = (ROOT / 'setup.py').read_text()
    for name in ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation', 'numba', 'safetensors'):
        assert name in text
        assert name in pinned


@pytest.mark.parametrize('version', [(3, 9), (3, 13)])
def test_unsupported_python_is_refused_with_the_remedy(version):
    with pytest.raises(setup_env.SetupError, match=r'make PYTHON=python3\.11'):
        setup_env.check_python(version)


def test_unpinned_package_is_an_error():
    with pytest.raises(setup_env.SetupError, match='no-such-package is not in'):
        setup_env.pinned('no-such-package')


def test_auto_takes_cuda_only_where_a_driver_answers(monkeypatch):
    monkeypatch.setattr(setup_env.shutil, 'which', lambda name: None)
    assert setup_env.choose_torch('auto') == 'cpu'
    assert setup_env.choose_torch('cuda') == 'cuda'


def test_stamp_changes_with_what_was_installed():
    assert setup_env.fingerprint('cpu', (3, 11)) == setup_env.fingerprint('cpu', (3, 11))
    assert len({setup_env.fingerprint(*key) for key in (('cpu', (3, 11)), ('cuda', (3, 11)), ('cpu', (3, 12)))}) == 3


def test_a_failing_step_shows_pips_words_and_advice(tmp_path):
    env = setup_env.Environment(tmp_path)
    env.python = setup_env.Path('/bin/false')
    env.log.write_text('the reason\n')
    with pytest.raises(setup_env.SetupError, match=r'(?s)the reason.*This step failed: torch.*try again') as caught:
        env.step('torch', 'try again', 'torch')
    assert str(env.log) in str(caught.value)
