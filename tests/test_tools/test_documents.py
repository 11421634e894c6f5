"""Every code block of the documents runs as printed, in a folder that looks like a clone with data.

Blocks are found by their fence and judged by their language. Options that make work small are appended to commands,
inherited by configs. A block that cannot run here says so to its reader, in a comment above it:
`<!-- not run: needs eight GPUs -->`; one that needs more than every set-up has, what that is, modules and versions:
`<!-- needs: torch 2.11, onnxruntime -->`.
"""

import argparse
import contextlib
import importlib.util
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.utils import digit_version
from mmengine.visualization import Visualizer
from tool_runs import ROOT, load_tool

DOCUMENTS = [ROOT / 'README.md', ROOT / 'configs/README.md']
SHOWN = ('text', 'bibtex', 'console')  # what a reader looks at and types nowhere
_FENCE = re.compile(
    r'(?:<!-- *(?:not run: *(?P<reason>[^>]*?)|needs: *(?P<needs>[^>]*?)) *-->\s*)?'
    r'^```(?P<language>\w*)\n(?P<text>.*?)^```$',
    re.M | re.S,
)
_INLINE = re.compile(r'`((?:python tools/|make )[^`…]*)`')  # a whole command, not a name
_WORDS = {'H': '64', 'W': '64', 'PROCESSES': '2'}  # placeholders that stand for numbers


class Block(NamedTuple):
    """A code block: where it is, its language, what it says, why it is not run, and what it needs."""

    place: str
    language: str
    text: str
    reason: str | None
    needs: str | None = None

    @property
    def is_config(self) -> bool:
        return self.language == 'python' and re.search(r'^(_base_ = |model = dict\()', self.text, re.M) is not None


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text()
    place = path.relative_to(ROOT)
    return [
        Block(
            f'{place}:{text.count(chr(10), 0, found.start("text"))}',
            found['language'],
            found['text'],
            found['reason'],
            found['needs'],
        )
        for found in _FENCE.finditer(text)
    ]


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
RUN = [block for block in BLOCKS if block.reason is None]


def chosen(condition):
    """Parametrize a test over the blocks that it is for."""
    found = []
    for block in filter(condition, RUN):
        lacks = lacking(block.needs or '')
        found.append(pytest.param(block, id=block.place, marks=pytest.mark.skipif(bool(lacks), reason=lacks)))
    return pytest.mark.parametrize('block', found)


def lacking(needs: str) -> str:
    """Which of 'MODULE, MODULE VERSION, ...' is not here or is older, in words."""
    for name, _, least in (need.strip().partition(' ') for need in needs.split(',') if need.strip()):
        if importlib.util.find_spec(name) is None:
            return f'the block needs {name}'
        version = importlib.import_module(name).__version__
        if least and digit_version(version) < digit_version(least):
            return f'the block needs {name} {least}; here is {version}'
    return ''


def test_what_a_block_needs_is_looked_for():
    assert lacking('') == lacking('torch 2.4, numpy') == ''
    assert lacking('torch, no_such_module') == 'the block needs no_such_module'
    assert lacking('torch 99.1').startswith('the block needs torch 99.1; here is ')


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_fence_is_found_and_says_its_language(document):
    found = [block for block in BLOCKS if block.place.startswith(f'{document.relative_to(ROOT)}:')]
    assert 2 * len(found) == len(re.findall(r'^ *```', document.read_text(), re.M))
    assert {block.language for block in found} <= {'python', 'bash', *SHOWN}
    assert all(block.reason is None or len(block.reason) > 10 for block in found), 'the reason is for the reader'


@pytest.fixture
def clone(shapes, tmp_path, monkeypatch):
    """The current folder: the repository's files, and small datasets where the documents have theirs."""
    for name in ('configs', 'tools', 'mmvmamba', 'kernels', 'README.md', 'Makefile'):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/shapes').symlink_to(shapes)
    monkeypatch.chdir(tmp_path)
    forget_runners()
    yield tmp_path
    forget_runners()


def forget_runners() -> None:
    """Else the next runner of this process would write where the first one did."""
    DefaultScope._instance_dict.clear()
    for visualizer in (Visualizer, *Visualizer.__subclasses__()):
        visualizer._instance_dict.clear()


def leaves(dataset: dict):
    """Datasets inside wrapped ones."""
    if 'data_root' in dataset:
        yield dataset
    for inner in [dataset.get('dataset'), *dataset.get('datasets', [])]:
        if inner:
            yield from leaves(inner)


def provide_coco(root: Path, classes: list[str], shapes: Path) -> None:
    """The shapes dataset in a folder, under the names of other classes; what has none is left out."""
    if root.exists():
        return
    shutil.copytree(shapes / 'coco', root)
    for path in root.glob('annotations/*.json'):
        content = json.loads(path.read_text())
        ids = [category['id'] for category in content['categories']][: len(classes)]
        ids += [1000 + i for i in range(len(classes) - len(ids))]  # which nothing has
        content['annotations'] = [entry for entry in content['annotations'] if entry['category_id'] in ids]
        content['categories'] = [dict(id=i, name=name) for i, name in zip(ids, classes, strict=True)]
        path.write_text(json.dumps(content))


def provide_data(cfg: Config, shapes: Path) -> None:
    """Make small datasets in the folders that a config reads, if they are not there."""
    init_default_scope(cfg.default_scope)
    for split in ('train', 'val'):
        for dataset in leaves(cfg[f'{split}_dataloader'].dataset):
            root = Path(dataset.data_root)
            if cfg.default_scope == 'mmseg':
                root.parent.mkdir(parents=True, exist_ok=True)
                if not root.exists():
                    shutil.copytree(shapes / 'ade', root)
            else:
                from mmdet.datasets import CocoDataset

                classes = (dataset.get('metainfo') or {}).get('classes', CocoDataset.METAINFO['classes'])
                provide_coco(root, list(classes), shapes)


def narrow(cfg: Config) -> dict:
    """Entries that make a config's model small: its backbone narrow, what follows fed by that, its images small."""
    model = cfg.model.to_dict()
    backbone = model['backbone']
    name = backbone['type'].rpartition('.')[2]
    if name == 'VMamba':
        channels = [8, 16, 32, 64]
        backbone.update(embed_dims=8, depths=(1, 1, 1, 1))
    else:
        assert name == 'FastVim', f'how is a {name} made narrow?'
        channels = 32
        backbone.update(embed_dims=32, depth=4, img_size=128, out_indices=(3,))
    if 'neck' in model:
        model['neck']['in_channels'] = channels
    for head, width in (('decode_head', channels), ('auxiliary_head', 32)):
        if head in model:
            model[head]['in_channels'] = width
    shrunk = load_tool('toolbox_check').shrunk
    entries = dict(model=shrunk(model))
    for split in ('train', 'val', 'test'):
        loader = shrunk(cfg[f'{split}_dataloader'].to_dict())
        loader.update(batch_size=2 if split == 'train' else 1, num_workers=0, persistent_workers=False)
        if split == 'train':
            loader['dataset']['indices'] = 6
        entries[f'{split}_dataloader'] = loader
    if 'max_iters' in cfg.train_cfg:
        entries['train_cfg'] = dict(cfg.train_cfg.to_dict(), max_iters=3, val_interval=3)
    else:
        entries['train_cfg'] = dict(cfg.train_cfg.to_dict(), max_epochs=1, val_interval=1)
    return entries


def small_child(path: Path, shapes: Path) -> Path:
    """A config that inherits another and trains for seconds, with the data that it needs."""
    cfg = Config.fromfile(path)
    provide_data(cfg, shapes)
    child = path.with_name(f'small_{path.name}')
    lines = [f'{key} = {dict(value, _delete_=True)!r}' for key, value in narrow(cfg).items()]
    logger = 'default_hooks = dict(logger=dict(interval=1))'
    child.write_text('\n'.join([f'_base_ = {str(path.absolute())!r}', *lines, logger, '']))
    return child


WITHOUT_BACKBONE = """\
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
model = dict(backbone=dict(_delete_=True))
"""


@chosen(lambda block: block.is_config)
def test_configs_train(block, clone, shapes):
    """As a config of a user's own, through tools/train.py; one without `_base_` on top of mmdet's Mask R-CNN."""
    text = block.text
    for base in re.findall(r"""['"](\S+?\.py)['"]""", text):
        if '::' not in base and not (clone / base).is_file():  # a folder that the text tells how to find
            text = text.replace(base, str(ROOT / 'configs' / Path(base).name))
    if '_base_' not in text:
        (clone / 'base.py').write_text(WITHOUT_BACKBONE)
        text = f"_base_ = './base.py'\n{text}"
    (clone / 'block.py').write_text(text)
    child = small_child(clone / 'block.py', shapes)
    assert load_tool('train').main([str(child), '--work-dir', str(clone / 'work'), '--from-scratch']) == 0
    rows = [json.loads(line) for path in clone.glob('work/*/vis_data/scalars.json') for line in path.open()]
    assert sum('loss' in row for row in rows) >= 3
    log = next(clone.glob('work/*/*.log')).read_text()
    assert 'Evaluating' in log or 'mIoU' in log


def expected_of(text: str) -> list[str]:
    """What the comments below prints say that they print."""
    lines = text.splitlines()
    said = []
    for above, line in itertools.pairwise(lines):
        if line.startswith('# ') and (above.startswith('print(') or (said and above == f'# {said[-1]}')):
            said.append(line[2:])
    return said


def provide_files(text: str, weights: Path) -> None:
    """What a block opens: small images, and initial weights of the models that it names, in place of published ones."""
    for name in re.findall(r"""['"]([\w./-]+\.(?:jpg|png))['"]""", text):
        cv2.imwrite(name, np.random.default_rng(0).integers(0, 256, (4, 320, 3), dtype=np.uint8))
    for name in re.findall(r"""['"](\w+)['"]""", text):
        for path in ROOT.glob(f'configs/{name}.py'):
            cfg = Config.fromfile(path)
            init_default_scope(cfg.default_scope)
            weights.mkdir(exist_ok=True)
            torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, weights / f'{name}.pth')


@chosen(lambda block: block.language == 'python' and not block.is_config)
def test_python_runs_and_prints_what_it_says(block, clone, site, tmp_path_factory, monkeypatch):
    """With the package installed, away from the clone."""
    folder = tmp_path_factory.mktemp('elsewhere')
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        provide_files(block.text, folder / 'weights')
    environment = {**os.environ, 'PYTHONPATH': str(site), 'MMVMAMBA_WEIGHTS': str(folder / 'weights')}
    done = subprocess.run(
        [sys.executable, '-c', block.text], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = iter(done.stdout.splitlines())
    for line in expected_of(block.text):
        assert line in printed, f'{line!r} is not printed (in this order): {done.stdout}'


def commands_of(text: str) -> list[list[str]]:
    """The commands of a shell block, as words without comments; assignments before a command are dropped."""
    joined = text.replace('\\\n', ' ')
    commands = [shlex.split(line, comments=True) for line in joined.splitlines()]
    return [
        list(words[next(i for i, word in enumerate(words) if not re.fullmatch(r'[A-Z_]+=.*', word)) :])
        for words in commands
        if words
    ]


class _Parsed(Exception):
    """A tool has understood its command line."""


def parses(tool: str, words: list[str], monkeypatch) -> None:
    """Let a tool's own parser read words; placeholders in capitals stand for files."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, argv=None, namespace=None):
        parse(parser, argv, namespace)
        raise _Parsed

    with monkeypatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.setattr(argparse.ArgumentParser, 'parse_args', stop)
        patch.setattr(sys, 'argv', [tool, *words])
        patch.syspath_prepend(str(ROOT / 'tools'))  # as Python does for a program
        try:
            load_tool(tool.removeprefix('tools/').removesuffix('.py')).main([_WORDS.get(word, word) for word in words])
        except _Parsed:
            return
        except SystemExit:
            pytest.fail(f'{tool} {" ".join(words)}: {said.getvalue()}')
    pytest.fail(f'{tool} has not parsed its command line')


def check_command(words: list[str], monkeypatch) -> None:
    """A command of the documents, as far as it can be told without running it."""
    for word in words:
        if word.startswith('configs/') and '*' not in word:
            assert Path(word.partition('=')[0]).exists(), f'{word}: no such file'
    if words[0] == 'make':
        subprocess.run(['make', '-n', *words[1:]], check=True, capture_output=True)
    elif words[0] in ('tools/dist_train.sh', 'tools/dist_test.sh'):  # CONFIG PROCESSES ...
        count = 1 if 'train' in words[0] else 2
        parses(f'tools/{"train" if count == 1 else "test"}.py', words[1 : 1 + count] + words[2 + count :], monkeypatch)
    elif words[0] == 'tools/slurm_train.sh':  # PARTITION JOB CONFIG ...
        parses('tools/train.py', words[3:], monkeypatch)
    elif words[0].endswith('.sh'):
        subprocess.run(['bash', '-n', words[0]], check=True)
    elif words[0] in ('python', 'python3') and words[1].startswith('tools/'):
        parses(words[1], words[2:], monkeypatch)
    else:
        pytest.fail(f'{" ".join(words)}: how is this checked? A block that cannot run says so above it: not run: ...')


def shell_lines(text: str) -> list[str]:
    return [line for line in text.replace('\\\n', ' ').splitlines() if line.strip() and not line.startswith('#')]


def is_literal(words: list[str]) -> bool:
    """Whether a command is run as it is: Python that is none of our tools."""
    return words[0] in ('python', 'python3') and not words[1].startswith('tools/')


@chosen(lambda block: block.language == 'bash')
def test_commands_are_understood(block, clone, monkeypatch):
    for words in commands_of(block.text):
        if not is_literal(words):
            check_command(words, monkeypatch)


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_within_the_text_are_understood(document, clone, monkeypatch):
    text = re.sub(r'<!--.*?-->', '', _FENCE.sub('', document.read_text()), flags=re.S)
    for command in sorted(set(_INLINE.findall(text))):
        if '...' not in command and 'NAME' not in command:
            for words in commands_of(' '.join(command.split())):
                check_command(words, monkeypatch)


LITERAL = [
    line
    for block in RUN
    if block.language == 'bash'
    for line in shell_lines(block.text)
    if is_literal(shlex.split(line, comments=True))
]


@pytest.mark.parametrize('line', LITERAL)
def test_other_python_commands_run(line, clone):
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    done = subprocess.run(
        ['bash', '-ec', line], capture_output=True, text=True, timeout=300, env={**os.environ, 'PATH': path}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
