import os

import pytest
import torch
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


@pytest.fixture
def poisoned_buffers(request, monkeypatch):
    """Memory that a kernel should have written but did not shows up as NaN."""
    if 'operator' in request.node.name or 'compile' in request.node.name:
        return  # which trace with fake tensors

    def poisoning(make):
        def poisoned(*args, **options):
            made = make(*args, **options)
            return made.fill_(float('nan')) if made.is_floating_point() else made

        return poisoned

    monkeypatch.setattr(torch.Tensor, 'new_empty', poisoning(torch.Tensor.new_empty))
    for name in ('empty', 'empty_like'):
        monkeypatch.setattr(torch, name, poisoning(getattr(torch, name)))


@pytest.fixture
def quick_interpreter(monkeypatch):
    """Triton prepares its language once a launch for every module rather than at every call of a device function.

    A quarter of the interpreter's time goes there.
    """
    if os.environ.get('TRITON_INTERPRET') != '1':
        return
    interpreter = pytest.importorskip('triton.runtime.interpreter')
    prepare, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    prepared = set()

    def prepare_once(function):
        module = function.__globals__['__name__']
        if module in prepared:
            return None  # only a launch looks at what comes back, and it is the first to ask
        prepared.add(module)
        return prepare(function)

    def launch_afresh(self, *arguments, **options):
        prepared.clear()
        return launch(self, *arguments, **options)

    monkeypatch.setattr(interpreter, '_patch_lang', prepare_once)
    monkeypatch.setattr(interpreter.GridExecutor, '__call__', launch_afresh)
