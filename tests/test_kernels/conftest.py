import pytest
from mmvmamba.kernels import availability

ON_CPU = [
    name for name, reason in availability('cpu').items() if reason is None and name not in ('reference', 'triton')
]


@pytest.fixture(params=ON_CPU)
def backend(request):
    """Every compiled or vectorised backend that runs on the CPU; Triton's interpreter has tests of its own."""
    return request.param


@pytest.fixture(params=['reference', *ON_CPU])
def backend_or_reference(request):
    return request.param
