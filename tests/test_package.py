"""What a user gets from the wheel, in an empty directory, and what importing costs."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(code, cwd, site=''):
    """Run Python code in `cwd`; modules of the folder `site` come first."""
    environment = {**os.environ, 'PYTHONPATH': str(site)}
    command = [sys.executable, '-c', code]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_wheel_is_pure_python_and_complete(wheel):
    assert wheel.name.endswith('-py3-none-any.whl')
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith(('.so', '.pyd', '.dll', '.cu', '.cpp'))]
    for folder, inside in (
        ('mmvmamba', 'mmvmamba'),
        ('kernels', 'mmvmamba/kernels'),
        ('configs', 'mmvmamba/.mim/configs'),
    ):
        files = (path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob('*.py') if '.mim' not in path.parts)
        assert not {f'{inside}/{file}' for file in files} - set(names)
    assert any(name.endswith('.dist-info/licenses/LICENSE') or name.endswith('.dist-info/LICENSE') for name in names)


def test_no_family_of_toolboxes_comes_without_an_extra(wheel):
    """The forks and the originals share import names: a plain install must never write one over the other."""
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
    asked = re.findall(
        r'^Requires-Dist: ([\w.-]+)[^;\n]*(?:;.*extra == [\'"](\w+)[\'"])?', archive.read(metadata).decode(), re.M
    )
    plain = {name for name, extra in asked if not extra}
    assert plain == {'torch', 'numpy'}
    extras = {extra: {name for name, of in asked if of == extra} for _, extra in asked if extra}
    assert set(extras) == {'det', 'seg', 'cls', 'export', 'all', 'cpu', 'test'}
    assert extras['all'] == set.union(*(extras[extra] for extra in ('det', 'seg', 'cls', 'export', 'cpu')))
    assert not {'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmsegmentation'} & set.union(*extras.values())


def test_forward_and_both_type_names_from_an_empty_directory(site, tmp_path):
    done = run(
        'import os\n'
        "os.environ['MMVMAMBA_BACKEND'] = 'torch'\n"  # nothing to compile
        'import mmvmamba, torch\n'
        f'assert mmvmamba.__file__.startswith({str(site)!r}), mmvmamba.__file__\n'
        f'import mmvmamba.kernels as k; assert k.__file__.startswith({str(site)!r}), k.__file__\n'
        'from mmvmamba.models import VMamba\n'
        'assert [tuple(o.shape) for o in VMamba()(torch.zeros(1, 3, 33, 47))][0] == (1, 96, 9, 12)\n'
        'from mmengine.config import Config\n'
        'from mmengine.registry import init_default_scope\n'
        'from mmdet.registry import MODELS\n'
        'from pathlib import Path\n'
        "cfg = Config.fromfile(Path(mmvmamba.__file__).parent / '.mim/configs/maskrcnn_vmamba_t.py')\n"
        "init_default_scope('mmdet')\n"
        "for name in ('VMamba', 'mmvmamba.VMamba'):\n"
        '    cfg.model.backbone.type = name\n'
        '    assert type(MODELS.build(cfg.model).backbone) is VMamba\n',
        tmp_path,
        site,
    )
    assert done.returncode == 0, done.stderr[-2000:]


OFFLINE = (
    'import os, socket\n'
    'os.environ["MMVMAMBA_BACKEND"] = "torch"\n'  # nothing to compile
    'def refuse(*arguments, **options): raise AssertionError(f"network: {arguments}")\n'
    'socket.socket.connect = socket.getaddrinfo = refuse\n'
)


def test_every_config_is_found_by_name(site, tmp_path):
    """As mim does it (index and metafile in the installed package) and as mmengine's inferencers do."""
    done = run(
        'from pathlib import Path\n'
        'import mmvmamba.models, yaml\n'
        'from mmengine.config import Config\n'
        'from mmengine.infer import BaseInferencer\n'
        'from mmengine.utils import get_installed_path\n'
        "home = Path(get_installed_path('mmvmamba'), '.mim')\n"
        f'assert str(home).startswith({str(site)!r}), home\n'
        "(metafile,) = yaml.safe_load((home / 'model-index.yml').read_text())['Import']\n"
        "rows = yaml.safe_load((home / metafile).read_text())['Models']\n"
        "for row in rows: Config.fromfile(home / row['Config'])\n"
        "names = {row['Name'] for row in rows}\n"
        "folders = home / 'configs', home / 'configs/imagenet'\n"
        "assert names == {path.stem for folder in folders for path in folder.glob('*.py')}\n"
        "assert set(BaseInferencer.list_models('mmvmamba')) == names\n"
        'print(len(names))\n',
        tmp_path,
        site,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) == sum(
        len(list(folder.glob('*.py'))) for folder in (ROOT / 'configs', ROOT / 'configs/imagenet')
    )


@pytest.mark.parametrize(
    'inferencer, name, home',
    [
        ('mmdet.apis import DetInferencer', 'maskrcnn_vmamba_t', 'site'),
        ('mmseg.apis import MMSegInferencer', 'upernet_vmamba_t', 'clone'),
    ],
)
def test_inferencers_give_the_published_models_outputs_by_bare_name(inferencer, name, home, site, tmp_path):
    """Without a network: a file like the authors' lies in a folder. A flat image keeps it fast."""
    done = run(
        f'{OFFLINE}'
        'import mmvmamba.models, numpy, torch\n'
        'from mmengine.config import Config\n'
        'from mmengine.registry import MODELS\n'
        'from mmvmamba.checkpoints import published\n'
        'from mmvmamba.engine.launch import prepare\n'
        f'from {inferencer} as Inferencer\n'
        f"entry = published()['{name}']\n"
        "cfg = Config.fromfile(os.path.join(mmvmamba.__path__[0], '.mim', entry.config))\n"
        "prepare(cfg, 'none', None)\n"
        'theirs = MODELS.build(cfg.model).eval()\n'
        "torch.save({'state_dict': theirs.state_dict(), 'meta': {'epoch': 12}}, entry.file)\n"
        "os.environ['MMVMAMBA_WEIGHTS'] = os.getcwd()\n"
        f"inferencer = Inferencer('{name}', device='cpu', scope='mmvmamba')\n"
        'image = numpy.random.default_rng(0).integers(0, 255, (4, 320, 3), dtype=numpy.uint8)\n'
        'found = inferencer(image, return_vis=True)\n'
        "assert numpy.asarray(found['visualization']).squeeze().shape == image.shape\n"
        'inferencer.model.load_state_dict(theirs.state_dict())\n'
        "expected = inferencer(image)['predictions']\n"
        "assert len(expected) and str(found['predictions']) == str(expected)\n"
        "assert len(inferencer.model.dataset_meta['classes']) in (80, 150)\n",
        tmp_path,
        site if home == 'site' else '',
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_scoped_type_needs_no_import_first(tmp_path):
    done = run(
        'from mmdet.registry import MODELS\n'
        "model = MODELS.build(dict(type='mmvmamba.VMamba', depths=(1, 1), embed_dims=8, out_indices=(0,)))\n"
        "assert type(model).__name__ == 'VMamba'\n",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    'module, heavy',
    [
        ('mmvmamba', ['torch', 'mmengine', 'numba', 'triton']),
        ('mmvmamba.kernels', ['mmengine', 'mmcv', 'mmdet', 'mmseg', 'numba', 'triton', 'torch._dynamo']),
        ('mmvmamba.models', ['mmcv', 'mmdet', 'mmseg', 'numba', 'triton']),
    ],
)
def test_imports_are_light(module, heavy, tmp_path):
    own = (
        'import mmengine.model; ' if module == 'mmvmamba.models' else ''
    )  # what it brings along, with old torch triton
    code = f'import sys; {own}before = set(sys.modules); import {module}; '
    done = run(f'{code}print(sorted(set({heavy!r}) & (set(sys.modules) - before)))', tmp_path)
    assert done.stdout.strip() == '[]', done.stdout + done.stderr
