import pytest
import torch
from mmengine.model import PretrainedInit
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, WEIGHT_INITIALIZERS

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
