"""Whole classifiers by mmpretrain around our backbones, against the published ones."""

import pytest
from golden_runs import CLASSIFIERS, check_classifier

pytest.importorskip('mmpretrain')


@pytest.mark.parametrize('backend', ['auto', 'torch', 'reference'])
@pytest.mark.parametrize('name', CLASSIFIERS)
def test_golden(name, backend, data_dir):
    # 'auto' may be a backend that sums in another order
    gradients = 2e-5 if backend == 'auto' else 1e-5
    check_classifier(data_dir / f'{name}.safetensors', backend, 2e-6, gradients)
