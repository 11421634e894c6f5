"""The doctor: right about this machine, and of use with half of the stack missing."""

import json
import subprocess
import sys

import pytest
from mmvmamba.kernels.dispatch import OLDEST_TRITON
from tool_runs import ROOT, load_tool, run_tool

doctor = load_tool('doctor')


def test_this_environment_is_healthy():
    done = run_tool('doctor.py', '--json')
    assert done.returncode == 0, done.stdout
    found = {row['name']: row for row in json.loads(done.stdout)}
    assert found['mmcv operators']['status'] == 'ok'
    assert found['backend torch']['status'] == 'ok'
    assert found['torch']['status'] in ('ok', 'note')  # a note: another version than the pinned one
    assert found['OpenMMLab family']['status'] == 'ok'


def test_table_is_readable():
    done = run_tool('doctor.py', COLUMNS='120')
    assert 'mmvmamba doctor' in done.stdout
    assert 'Training can run here.' in done.stdout


def test_missing_packages_come_with_commands(tmp_path):
    """An interpreter that sees no installed package at all."""
    command = [sys.executable, '-S', '-E', str(ROOT / 'tools/doctor.py')]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert 'torch' in done.stdout
    assert 'not installed' in done.stdout
    assert 'fix: make setup' in done.stdout
    assert 'Training cannot run yet' in done.stdout


FORKS = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmsegmentation': '1.4.2',
    'onedl-mmpretrain': '1.3.6',
}
ORIGINALS = {
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'mmsegmentation': '1.2.2',
    'mmpretrain': '1.2.0',
}


@pytest.fixture
def installed(monkeypatch):
    """Set what is installed (distribution name to version); everything of it imports."""

    def install(packages):
        def version(name):
            if name not in packages:
                raise doctor.importlib.metadata.PackageNotFoundError(name)
            return packages[name]

        monkeypatch.setattr(doctor.importlib.metadata, 'version', version)
        monkeypatch.setattr(doctor.importlib, 'import_module', lambda name: None)
        return {
            finding.name: finding for finding in [doctor.check_family(), *map(doctor.check_package, doctor.PACKAGES)]
        }

    return install


@pytest.mark.parametrize('packages', [FORKS, ORIGINALS], ids=['forks', 'originals'])
def test_either_family_is_recognised(packages, installed):
    found = installed(packages)
    names = ('OpenMMLab family', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')
    assert [found[name].status for name in names] == ['ok'] * 6
    assert ('without extras' in found['OpenMMLab family'].detail) == (packages is ORIGINALS)


@pytest.mark.parametrize('packages', [FORKS, ORIGINALS], ids=['forks', 'originals'])
def test_other_versions_are_other_than_tested_and_not_missing(packages, installed):
    found = installed(dict.fromkeys(packages, '9.9.9'))
    for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'):
        assert found[name].status == 'note'
        assert 'other than tested' in found[name].detail


@pytest.mark.parametrize('present, absent', [(ORIGINALS, FORKS), (FORKS, ORIGINALS)], ids=['originals', 'forks'])
def test_no_command_installs_one_family_over_the_other(present, absent, installed):
    for missing in present:
        for finding in installed({name: present[name] for name in present if name != missing}).values():
            assert not set(absent) & set(finding.fix.replace('==', ' ').split()), finding
            assert finding.fix != 'make setup' or finding.name in ('torch', 'pycocotools')


def test_families_over_each_other_are_a_problem_with_a_way_out(installed):
    found = installed({**FORKS, **ORIGINALS})['OpenMMLab family']
    assert found.status == 'problem'
    assert 'pip uninstall -y onedl-mmengine mmengine' in found.fix


def test_a_mixture_is_noted(installed):
    assert installed({'mmengine': '0.10.7', 'onedl-mmcv': '2.3.6'})['OpenMMLab family'].status == 'note'


def test_old_triton_comes_with_the_command_and_its_price(installed):
    found = installed({**ORIGINALS, 'triton': '3.0.0'})['triton']
    assert found.status == 'note'
    assert 'too old' in found.detail
    assert found.fix.startswith('pip install --no-deps triton==3.6.0')
    assert 'torch.compile' in found.fix


@pytest.mark.parametrize(
    'line', ['triton==3.0.0; platform_system == "Linux"', 'triton (==3.0.0) ; python_version < "3.13"']
)
def test_newer_triton_beside_an_old_torch_is_said(line, installed, monkeypatch):
    requires = ['filelock', line]
    monkeypatch.setattr(doctor.importlib.metadata, 'requires', lambda name: requires)
    found = installed({**ORIGINALS, 'torch': '2.4.1', 'triton': '3.6.0'})['triton']
    assert 'torch asks for 3.0.0' in found.detail
    assert 'torch.compile' in found.detail


def test_oldest_triton_is_the_one_that_the_kernels_need():
    assert doctor.OLDEST_TRITON == OLDEST_TRITON


def test_one_toolbox_is_enough(monkeypatch):
    monkeypatch.setattr(doctor, 'check_machine', list)
    monkeypatch.setattr(doctor, 'check_package', lambda name: doctor.Finding(name, 'note', 'not installed'))
    for module in doctor.TOOLBOXES:
        monkeypatch.delitem(sys.modules, module, raising=False)
    for module in doctor.TOOLBOXES:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, doctor)
            assert 'problem' not in {f.status for f in doctor.examine() if f.name in doctor.TOOLBOXES}
    assert {f.status for f in doctor.examine() if f.name in doctor.TOOLBOXES} == {'problem'}
