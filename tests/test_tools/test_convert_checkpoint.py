"""Published files in, clean files out."""

import os

import pytest
import torch
from tool_runs import run_tool

from mmvmamba import checkpoints
from mmvmamba.models import FastVim, VMamba


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """A file as the authors of VMamba publish it, of a real size."""
    torch.manual_seed(0)
    state = {k: v for k, v in VMamba('tiny_s2l5').state_dict().items() if not k.startswith('outnorm')}
    state |= {'classifier.head.weight': torch.ones(10, 768), 'classifier.head.bias': torch.ones(10)}
    path = tmp_path_factory.mktemp('published') / 'classifier.pth'
    torch.save({'model': {k: torch.zeros_like(v) for k, v in state.items()}, 'model_ema': state}, path)
    return path, state


@pytest.mark.parametrize('out', ['weights', 'weights/mine.safetensors', 'weights/mine.pth'])
def test_converted_weights_are_the_published_ones(out, classifier, tmp_path):
    path, state = classifier
    done = run_tool('convert_checkpoint.py', path, tmp_path / out, '--container', 'model_ema')
    assert done.returncode == 0, done.stderr
    assert "entry 'model_ema'; it also has ['model']" in done.stdout
    (written,) = (tmp_path / 'weights').iterdir()
    assert written.name.startswith('mine-' if 'mine' in out else 'vmamba_tiny_s2l5-')
    assert f'written: {written}' in done.stdout
    converted = checkpoints.read(written)
    assert all(torch.equal(value, state[name]) for name, value in converted.items())
    model = VMamba('tiny_s2l5', init_cfg=dict(type='Pretrained', checkpoint=str(written)))
    model.init_weights()
    assert torch.equal(model.layers[3].blocks[1].op.A_logs, state['layers.3.blocks.1.op.A_logs'])


def test_another_architecture_is_refused(classifier, tmp_path):
    done = run_tool('convert_checkpoint.py', classifier[0], tmp_path, '--arch', 'tiny_s1l8')
    assert done.returncode == 2
    assert 'look like VMamba tiny_s2l5 weights; this is VMamba tiny_s1l8' in done.stderr
    assert not list(tmp_path.iterdir())


def test_shapes_of_no_architecture_are_refused(tmp_path):
    torch.save(FastVim('tiny', depth=2, out_indices=(1,)).state_dict(), tmp_path / 'c.pth')
    done = run_tool('convert_checkpoint.py', tmp_path / 'c.pth', tmp_path / 'out')
    assert done.returncode == 2
    assert 'no published architecture, as its shapes tell: embed_dims=192, depth=2, patch_size=16' in done.stderr


class Dangerous:
    def __reduce__(self):
        return os.getcwd, ()  # stands for anything


def test_files_that_carry_code_need_trust(tmp_path):
    state = {k: v for k, v in FastVim('tiny').state_dict().items() if not k.startswith('outnorm')}
    torch.save({'state_dict': state, 'callbacks': Dangerous()}, tmp_path / 'published.ckpt')
    refused = run_tool('convert_checkpoint.py', tmp_path / 'published.ckpt', tmp_path / 'out')
    assert refused.returncode == 2
    assert 'could run code and are refused' in refused.stderr
    assert '--trust-checkpoint' in refused.stderr
    done = run_tool('convert_checkpoint.py', tmp_path / 'published.ckpt', tmp_path / 'out', '--trust-checkpoint')
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / 'out').iterdir()
    assert torch.equal(checkpoints.read(written)['pos_embed'], state['pos_embed'])
