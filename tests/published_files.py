"""Parameters named and packed as the authors of the architectures publish them."""

import functools
import os
import re
from pathlib import Path

import golden_runs
import torch
from golden_runs import parameters_of
from mmvmamba.kernels.testing import load_golden

DATA = Path(__file__).parent / 'data'


class Dangerous:
    """What runs a command where it is unpickled carelessly."""

    def __reduce__(self):
        return os.system, ('touch ran',)


def old_names(parameters):
    """How the first vanilla files were named."""
    names = [
        (r'^patch_embed\.0\.', 'patch_embed.proj.'),
        (r'^patch_embed\.2\.', 'patch_embed.norm.'),
        (r'(blocks\.\d+)\.norm\.', r'\1.ln_1.'),
        (r'\.op\.', '.self_attention.'),
    ]
    renamed = {}
    for name, value in parameters.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def as_convolutions(parameters):
    """Linears as 1 x 1 convolutions."""
    linear = ('in_proj.weight', 'out_proj.weight', 'fc1.weight', 'fc2.weight')
    return {k: v[..., None, None] if k.endswith(linear) else v for k, v in parameters.items()}


def with_heads(parameters, *heads):
    """A whole detector's or segmentor's file."""
    own = {f'backbone.{k}': v for k, v in parameters.items()}
    return own | {f'{head}.conv.weight': torch.ones(2) for head in heads}


def with_class_token(parameters):
    """Vim's, with its position in the middle."""
    position = parameters['pos_embed']
    middle = position.shape[1] // 2
    token = torch.full_like(position[:, :1], 9.0)
    position = torch.cat([position[:, :middle], token, position[:, middle:]], dim=1)
    return parameters | {'cls_token': token, 'pos_embed': position}


def fastvim_golden(name):
    """Golden tensors of a small FastVim or Vim, its parameters, and a builder of models that they fit."""
    tensors, metadata = load_golden(DATA / f'{name}.safetensors')
    return parameters_of(tensors), tensors, functools.partial(golden_runs.fastvim, metadata['official_kwargs'])
