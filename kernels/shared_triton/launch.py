"""The only place where Triton kernels are started, and what is kept of a start for the next one.

What shapes and dtypes fix of a launch (grid, compile-time arguments, options) is a `Launch`, made once. At its first
call Triton binds the arguments and compiles; what comes back starts the kernel without binding again. That is right as
long as Triton would specialise alike: dtypes and sizes are the plan's own, addresses are looked at in every call.
"""

import contextlib
import functools
import operator
import threading
from typing import Any, NamedTuple

import torch
import triton

ALIGNMENT = 16
"""Bytes; Triton compiles another kernel for pointers that are no multiple of it."""

_INT32 = 1 << 31
_recorders = 0  # in all threads; what a launch looks at first
_lock = threading.Lock()
_recording = threading.local()
_caches = []


class Recorded(NamedTuple):
    """A launch that was asked for.

    Attributes:
        kernel: the Triton function.
        grid: number of programs.
        types: of the arguments that are not compiled in: '*' and its dtype for a pointer, 'i32', 'i64', 'fp32', or
            'absent'.
        misaligned: which of them are pointers at no multiple of `ALIGNMENT`.
        constants: compile-time arguments and options by name.
    """

    kernel: Any
    grid: int
    types: tuple[str, ...]
    misaligned: tuple[int, ...]
    constants: dict[str, Any]

    def variant(self) -> tuple:
        """What decides which machine code runs, as text and numbers: equal in every process."""
        constants = ((name, value if isinstance(value, int) else str(value)) for name, value in self.constants.items())
        return self.kernel.fn.__module__, self.kernel.fn.__name__, self.types, self.misaligned, tuple(sorted(constants))


class Launch:
    """A kernel with all that shapes and dtypes fix; call it with the kernel's tensors, then numbers, in order.

    Valid for one device, whose number is current when it is called. An argument may be None, in every call or in none:
    the kernel is compiled without it.

    Args:
        kernel: whose compile-time parameters are its last.
        grid: number of programs.
        constants: compile-time arguments and options (`num_warps` and the like) by name.
    """

    __slots__ = ('_bound', '_driver', '_ordered', '_run', '_tensors', 'constants', 'grid', 'kernel')

    def __init__(self, kernel, grid: int, **constants):
        self.kernel, self.grid, self.constants = kernel, grid, constants
        self._driver = self._run = None
        self._bound = tuple(constants[name] for name in kernel.arg_names if name in constants)
        names = [name for name in kernel.arg_names if name not in constants]
        self._tensors = sum(name.startswith('p_') for name in names)
        self._ordered = operator.itemgetter(*names)

    def start(self, arguments: dict):
        """As a call, with everything by its name in the kernel: pointers are `p_...`, the rest are numbers.

        A dictionary, as keyword arguments cost the host a microsecond more: they are copied twice.
        """
        values = self._ordered(arguments)
        self._start(values[: self._tensors], values)

    def __call__(self, tensors, *numbers):
        self._start(tensors, (*tensors, *numbers))

    def _start(self, tensors, values):
        addresses = 0
        for tensor in tensors:
            if tensor is not None:
                addresses |= tensor.data_ptr()
        run = self._run
        if addresses % ALIGNMENT or run is None or _recorders or self._driver is not triton.runtime.driver.active:
            self._bind(tensors, values, aligned=not addresses % ALIGNMENT)
        else:
            run(*values, *self._bound)

    def _bind(self, tensors, values, aligned: bool):
        """Launch as Triton does, and keep what it compiled if the next launch may use it."""
        if _recorders and getattr(_recording, 'launches', None) is not None:
            types = (*map(_pointer_type, tensors), *map(_type, values[len(tensors) :]))
            misaligned = tuple(i for i, t in enumerate(tensors) if t is not None and t.data_ptr() % ALIGNMENT)
            _recording.launches.append(Recorded(self.kernel, self.grid, types, misaligned, self.constants))
            if not _recording.launching:
                return
        compiled = self.kernel[(self.grid,)](*values, **self.constants)
        if aligned and isinstance(compiled, triton.compiler.CompiledKernel):  # the interpreter has none to give
            self._driver, self._run = triton.runtime.driver.active, compiled[(self.grid, 1, 1)]


def _pointer_type(tensor) -> str:
    return 'absent' if tensor is None else f'*{tensor.dtype}'.replace('torch.', '')


def _type(number) -> str:
    if isinstance(number, float):
        return 'fp32'
    if number is None:
        return 'absent'
    return 'i32' if -_INT32 <= number < _INT32 else 'i64'


@contextlib.contextmanager
def recording(launching: bool = False):
    """Record this thread's launches inside: yields the list of `Recorded` that they fill.

    Args:
        launching: also launch; else results stay unwritten.
    """
    global _recorders
    outer = getattr(_recording, 'launches', None), getattr(_recording, 'launching', False)
    launches = []
    with _lock:
        _recorders += 1
    _recording.launches, _recording.launching = launches, launching
    try:
        yield launches
    finally:
        _recording.launches, _recording.launching = outer
        with _lock:
            _recorders -= 1


def planned(make):
    """Keep what `make` returns for its arguments, of which there are as many as sizes of images: for the latest."""
    cached = functools.lru_cache(maxsize=4096)(make)
    _caches.append(cached)
    return cached


def forget() -> None:
    """Drop all plans, and with them what is kept of Triton's kernels."""
    for cached in _caches:
        cached.cache_clear()


def on_device(tensor: torch.Tensor):
    """Context in which the tensor's GPU is the current one; none is entered where it is already."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return _nothing
    return torch.cuda.device_of(tensor)


_nothing = contextlib.nullcontext()
