"""Layer-wise learning-rate decay: which layer a parameter belongs to, and what mmengine's own rules keep doing."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmvmamba.engine.layer_decay import layer_of
from mmvmamba.models import FastVim, VMamba

RATE, LR, DECAY = 0.5, 0.1, 0.05


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(4, 4)


def groups_of(model, **paramwise):
    """Settings of every trained parameter by name."""
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY),
            constructor='mmvmamba.LayerDecayConstructor',
            paramwise_cfg=dict(dict(layer_decay_rate=RATE), **paramwise),
        ),
    )
    by_id = {id(p): group for group in wrapper.optimizer.param_groups for p in group['params']}
    return {name: by_id[id(p)] for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def fastvim():
    return Detector(FastVim(embed_dims=16, depth=4, out_indices=(0, 2)))


@pytest.fixture
def vmamba():
    return Detector(VMamba(embed_dims=8, depths=(1, 2, 1, 1)))


def test_fastvim_layers(fastvim):
    groups = groups_of(fastvim)
    expected = {
        'backbone.patch_embed.proj.weight': 4,
        'backbone.pos_embed': 4,
        'backbone.layers.0.mixer.A_log': 3,
        'backbone.layers.1.norm.weight': 2,
        'backbone.layers.2.mixer.in_proj.weight': 1,  # the last one built: blocks behind out_indices do not count
        'backbone.outnorm_0.weight': 0,
        'head.weight': 0,
    }
    for name, steps in expected.items():
        assert groups[name]['lr'] == pytest.approx(LR * RATE**steps), name
    assert len(groups) == len(list(fastvim.parameters()))


def test_vmamba_layers(vmamba):
    groups = groups_of(vmamba)
    expected = {
        'backbone.patch_embed.0.weight': 6,
        'backbone.layers.0.blocks.0.op.Ds': 5,
        'backbone.layers.0.downsample.1.weight': 4,
        'backbone.layers.1.blocks.0.norm.weight': 4,
        'backbone.layers.1.blocks.1.op.A_logs': 3,
        'backbone.layers.1.downsample.3.weight': 2,
        'backbone.layers.2.blocks.0.mlp.fc1.weight': 2,
        'backbone.layers.3.blocks.0.mlp.fc2.bias': 1,
        'backbone.outnorm0.weight': 0,
        'head.bias': 0,
    }
    for name, steps in expected.items():
        assert groups[name]['lr'] == pytest.approx(LR * RATE**steps), name
    assert len(groups) == len(list(vmamba.parameters()))


def test_layers_count_up_without_a_gap(fastvim, vmamba):
    for model, last in ((fastvim, 4), (vmamba, 6)):
        layers = {layer_of(model.backbone, name) for name, _ in model.backbone.named_parameters()}
        assert layers == set(range(last + 1))


def test_other_rules_still_apply(fastvim):
    groups = groups_of(
        fastvim,
        norm_decay_mult=0.0,
        custom_keys={'pos_embed': dict(decay_mult=0.0), 'head': dict(lr_mult=2.0), 'layers.0': dict(lr_mult=3.0)},
    )
    assert groups['backbone.pos_embed']['weight_decay'] == 0
    assert groups['backbone.outnorm_1.weight']['weight_decay'] == 0
    assert groups['backbone.patch_embed.proj.weight'].get('weight_decay', DECAY) == DECAY
    assert groups['head.weight']['lr'] == pytest.approx(2 * LR)
    assert groups['backbone.layers.0.mixer.D']['lr'] == pytest.approx(3 * LR * RATE**3)


def test_frozen_parameters_are_left_out():
    model = Detector(FastVim(embed_dims=16, depth=4, out_indices=(2,), frozen_stages=1))
    groups = groups_of(model)
    assert not [name for name in groups if name.startswith(('backbone.patch_embed', 'backbone.layers.0'))]
    assert groups['backbone.layers.1.mixer.D']['lr'] == pytest.approx(LR * RATE**2)


def test_a_step_moves_early_layers_less(fastvim):
    """AdamW's first step is the learning rate itself, whatever the gradient."""
    groups_of(fastvim)
    wrapper = build_optim_wrapper(
        fastvim,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=LR, weight_decay=0.0),
            constructor='mmvmamba.LayerDecayConstructor',
            paramwise_cfg=dict(layer_decay_rate=RATE),
        ),
    )
    before = {name: p.detach().clone() for name, p in fastvim.named_parameters()}
    for p in fastvim.parameters():
        p.grad = torch.ones_like(p)
    wrapper.step()
    moved = {name: (before[name] - p).mean().item() for name, p in fastvim.named_parameters()}
    assert moved['head.weight'] == pytest.approx(LR, rel=1e-3)
    assert moved['backbone.layers.0.mixer.D'] == pytest.approx(LR * RATE**3, rel=1e-3)


@pytest.mark.parametrize('rate', [None, 0, 1.5, '0.7'])
def test_bad_rates(fastvim, rate):
    with pytest.raises(ValueError, match=r'layer_decay_rate=.*expected a number above 0 and up to 1'):
        groups_of(fastvim, layer_decay_rate=rate)


def test_unknown_models_are_refused():
    with pytest.raises(TypeError, match=r'layers of Linear are unknown; expected one of .*FastVim.*VMamba'):
        groups_of(Detector(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match='Linear has no backbone'):
        groups_of(nn.Linear(2, 2))
