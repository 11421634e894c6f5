import importlib
import pkgutil
import subprocess
import sys

import pytest
import torch
from mmengine import registry as root
from mmengine.model import PretrainedInit
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, WEIGHT_INITIALIZERS

from mmvmamba import datasets, engine, models
from mmvmamba.registry import is_type


@pytest.mark.parametrize(
    'type_', ['Pretrained', 'mmengine.Pretrained', 'mmengine.model.weight_init.PretrainedInit', PretrainedInit]
)
def test_a_type_is_found_however_it_is_written(type_):
    assert is_type(type_, 'Pretrained', WEIGHT_INITIALIZERS)


@pytest.mark.parametrize('type_', [None, 'Constant', 'mmengine.Constant', torch.nn.Linear, 'PretrainedInitialisation'])
def test_another_type_is_not(type_):
    assert not is_type(type_, 'Pretrained', WEIGHT_INITIALIZERS)


def test_a_subclass_is_a_type_of_its_own():
    assert is_type(AmpOptimWrapper, 'AmpOptimWrapper', OPTIM_WRAPPERS)
    assert not is_type(AmpOptimWrapper, 'OptimWrapper', OPTIM_WRAPPERS)
    assert is_type(OptimWrapper, 'OptimWrapper', OPTIM_WRAPPERS)


def test_types_that_nobody_knows_are_not_the_same():
    assert not is_type('nowhere.Strategy', 'Unregistered', OPTIM_WRAPPERS)


def run(code: str) -> str:
    """What Python code prints in a fresh process."""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def test_every_name_of_ours_is_found_with_nothing_imported():
    """Whatever is registered when everything is imported; each kind is asked for from the root, as mmengine does."""
    for package in (datasets, engine, models):
        for module in pkgutil.walk_packages(package.__path__, f'{package.__name__}.'):
            importlib.import_module(module.name)
    nodes = {kind: node for kind, node in vars(root).items() if isinstance(node, root.Registry)}
    ours = {kind: node.children['mmvmamba'] for kind, node in nodes.items() if 'mmvmamba' in node.children}
    names = [(kind, name) for kind, node in ours.items() for name in node.module_dict]
    kinds = {'MODELS', 'DATASETS', 'HOOKS', 'OPTIM_WRAPPERS', 'OPTIM_WRAPPER_CONSTRUCTORS', 'FUNCTIONS'}
    assert {kind for kind, _ in names} >= kinds
    assert {('DATASETS', 'CheckedSegDataset'), ('MODELS', 'InstanceTTAModel')} <= set(names)
    missing = run(
        'from mmengine import registry as root\n'
        f'names = {names[::-1]!r}\n'
        'print([name for kind, name in names if getattr(root, kind).get(f"mmvmamba.{name}") is None])'
    )
    assert missing == '[]'


def test_one_toolbox_is_enough_and_a_missing_one_is_named():
    said = run(
        'import sys\n'
        'sys.modules["mmdet"] = None\n'  # as if it were not installed
        'from mmengine.registry import DATASETS, MODELS\n'
        'import mmvmamba.datasets, mmvmamba.models\n'
        'assert MODELS.get("mmvmamba.VMamba") and "mmcv" not in sys.modules\n'
        'assert DATASETS.get("mmvmamba.CheckedSegDataset")\n'
        'said = []\n'
        'for registry, name in ((DATASETS, "CheckedCocoDataset"), (MODELS, "InstanceTTAModel")):\n'
        '    try:\n'
        '        registry.get(f"mmvmamba.{name}")\n'
        '    except ImportError as error:\n'
        '        said.append(str(error))\n'
        'print(said)\n'
    )
    assert said.count('needs mmdet, which cannot be imported') == 2
    assert 'CheckedCocoDataset' in said


TOOLBOXES = {'mmdet': 'MaskRCNN', 'mmseg': 'EncoderDecoder', 'mmpretrain': 'ImageClassifier'}


@pytest.mark.parametrize('present', [*([toolbox] for toolbox in TOOLBOXES), list(TOOLBOXES)], ids='-'.join)
def test_each_toolbox_finds_ours_alone_and_beside_the_others(present):
    """By the scoped name with nothing imported, and by the bare one after `custom_imports`."""
    for toolbox in present:
        pytest.importorskip(f'{toolbox}.registry')
    run(
        'import importlib, sys\n'
        f'toolboxes, present = {TOOLBOXES!r}, {present!r}\n'
        'sys.modules.update(dict.fromkeys(set(toolboxes) - set(present)))\n'  # as if they were not installed
        'from mmvmamba.torchvision_stubs import define_missing_operators\n'
        'define_missing_operators()\n'
        'from mmengine.registry import DefaultScope\n'
        'tiny = dict(embed_dims=8, depths=(1, 1, 1, 1))\n'
        'for toolbox in present:\n'
        '    registry = importlib.import_module(f"{toolbox}.registry")\n'
        '    with DefaultScope.overwrite_default_scope(toolbox):\n'
        '        assert registry.MODELS.get(toolboxes[toolbox]).__module__.startswith(f"{toolbox}.models")\n'
        '        first = registry.MODELS.build(dict(type="mmvmamba.VMamba", **tiny))\n'
        '        importlib.import_module("mmvmamba.models")\n'  # what custom_imports does
        '        assert type(registry.MODELS.build(dict(type="VMamba", **tiny))) is type(first)\n'
        '        assert registry.HOOKS.get("mmvmamba.StrictLoading")\n'
        '        assert registry.OPTIM_WRAPPERS.get("mmvmamba.CpuAmpOptimWrapper")\n'
        '        assert registry.OPTIM_WRAPPER_CONSTRUCTORS.get("mmvmamba.LayerDecayConstructor")\n'
        'print("done")\n'
    )
