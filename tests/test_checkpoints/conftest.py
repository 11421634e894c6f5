import pytest
from golden_runs import parameters_of
from mmvmamba.kernels.testing import load_golden
from published_files import DATA, fastvim_golden


@pytest.fixture(scope='module')
def golden():
    """Published names and values of a small current and a small vanilla model, their inputs and outputs."""
    found = {}
    for name in ('s1', 'v0'):
        tensors, metadata = load_golden(DATA / f'vmamba_{name}.safetensors')
        found[name] = parameters_of(tensors), tensors, metadata['official_kwargs']
    return found


@pytest.fixture(scope='module')
def fastvim():
    return fastvim_golden('fastvim')
