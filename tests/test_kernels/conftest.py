import gc
import os
from concurrent.futures import ThreadPoolExecutor

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
            if made.is_floating_point():
                made.detach().fill_(float('nan'))  # PyTorch's checkpointing makes an empty leaf
            return made

        return poisoned

    monkeypatch.setattr(torch.Tensor, 'new_empty', poisoning(torch.Tensor.new_empty))
    for name in ('empty', 'empty_like'):
        monkeypatch.setattr(torch, name, poisoning(getattr(torch, name)))


@pytest.fixture
def quick_interpreter(monkeypatch):
    """Spare Triton's interpreter most of its time.

    It prepares the language once a launch for every module instead of at every call of a device function, broadcasts no
    operands that have one shape already, and looks for no garbage. It runs in a thread of its own: below pytest Python
    3.11's stack is so deep that it asks the system for another piece at many a call, and returns it at once.
    """
    if os.environ.get('TRITON_INTERPRET') != '1':
        yield
        return
    interpreter = pytest.importorskip('triton.runtime.interpreter')
    prepare, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    semantic = type(interpreter.interpreter_semantic)
    broadcast = semantic.broadcast_impl_value
    prepared = set()

    def prepare_once(function):
        module = function.__globals__['__name__']
        if module in prepared:
            return None  # only a launch looks at what comes back, and it is the first to ask
        prepared.add(module)
        return prepare(function)

    def launch_afresh(self, *arguments, **options):
        prepared.clear()
        gc.disable()
        try:
            return thread.submit(launch, self, *arguments, **options).result()
        finally:
            gc.enable()

    def broadcast_if_needed(self, left, right):
        same = left.type.is_block() and right.type.is_block() and left.handle.data.shape == right.handle.data.shape
        return (left, right) if same else broadcast(self, left, right)

    monkeypatch.setattr(semantic, 'broadcast_impl_value', broadcast_if_needed)
    monkeypatch.setattr(interpreter, '_patch_lang', prepare_once)
    monkeypatch.setattr(interpreter.GridExecutor, '__call__', launch_afresh)
    with ThreadPoolExecutor(1) as thread:
        yield
