"""Which implementation of an operator runs on a device, and in words why another one cannot."""

import contextlib
import contextvars
import functools
import importlib
import importlib.util
import logging
import os
import sys

import torch

BACKENDS = ('triton', 'cpu', 'torch', 'reference')
"""All backend names. `auto` takes the first that can run, `triton` only where its kernels have proved themselves."""

ENVIRONMENT_VARIABLE = 'MMVMAMBA_BACKEND'

VERIFY_VARIABLE = 'MMVMAMBA_VERIFY'

VERIFY_MODES = ('first', 'always', 'off')
"""What `auto` does before it takes a kernel of Triton's: check what no verdict is kept of, check everything once a
process, trust it."""

OLDEST_TRITON = (3, 6)
"""Older ones lack parts of the language that the kernels are written in."""

DECOMPOSED = 'decomposed'
"""What `choose` returns within `exporting()`: operators of PyTorch's that exporters know, in the place of ours."""

_exporting = contextvars.ContextVar('exporting', default=None)

_logger = logging.getLogger('mmvmamba.kernels')
_operators: dict[str, 'Operator'] = {}
_chosen: dict[tuple, str] = {}


class BackendUnavailableError(RuntimeError):
    """The backend that was asked for cannot run this operator on this device."""


class Operator:
    """One operator and the modules that implement it.

    Args:
        name: public name, as it appears in messages.
        package: `__package__` of the operator's folder.
        modules: backend name to module name inside the folder. A module is imported when its backend is first
            used, so triton and numba are needed only by those who use them.
    """

    def __init__(self, name: str, package: str, modules: dict[str, str]):
        self.name = name
        self._package = package
        self._modules = modules
        _operators[name] = self

    def load(self, backend: str):
        """Import and return the module that implements `backend`.

        Raises:
            BackendUnavailableError: the operator has none, `decomposed` included.
        """
        if backend not in self._modules:
            raise BackendUnavailableError(self._missing(backend))
        return importlib.import_module(f'.{self._modules[backend]}', self._package)

    def why_not(self, backend: str, device_type: str, dtype: torch.dtype = torch.float32) -> str | None:
        """Say why `backend` cannot run this operator on tensors of this kind, or None if it can."""
        if backend not in self._modules:
            return self._missing(backend)
        return _why_not(backend, device_type, dtype)

    def _missing(self, backend: str) -> str:
        return f'{self.name} has no {backend} implementation in this version'


def _why_not(backend: str, device_type: str, dtype: torch.dtype) -> str | None:
    if backend in ('triton', 'cpu') and dtype == torch.float64:
        return 'it computes in float32 and these tensors are float64'
    if backend == 'triton':
        if importlib.util.find_spec('triton') is None:
            return 'the package triton is not installed (pip install triton)'
        if device_type != 'cuda' and os.environ.get('TRITON_INTERPRET') != '1':
            return f'it needs tensors on a GPU and these are on {device_type} (for tests: TRITON_INTERPRET=1)'
        version = importlib.import_module('triton').__version__
        if tuple(int(part) for part in version.split('.')[:2]) < OLDEST_TRITON:
            oldest = '.'.join(map(str, OLDEST_TRITON))
            return f'triton {version} is too old; expected {oldest} or newer, as torch 2.11 brings it'
    if backend == 'cpu':
        if importlib.util.find_spec('numba') is None:
            return 'the package numba is not installed (pip install numba)'
        if device_type != 'cpu':
            return f'it needs tensors on the CPU and these are on {device_type}'
    return None


def availability(device_type: str = 'cpu') -> dict[str, str | None]:
    """Map every backend to None if each operator that it implements can run on it, else to the reason why not."""
    _import_operators()
    report = {}
    for backend in BACKENDS:
        implemented = [operator for operator in _operators.values() if backend in operator._modules]
        reasons = dict.fromkeys(operator.why_not(backend, device_type) for operator in implemented)
        reasons.pop(None, None)
        report[backend] = '; '.join(reasons) or None
    return report


def able(operator: str, device_type: str, dtype: torch.dtype = torch.float32) -> list[str]:
    """The backends that can run this operator on tensors of this kind."""
    return [backend for backend in BACKENDS if _operators[operator].why_not(backend, device_type, dtype) is None]


def _import_operators() -> None:
    """Importing the package is what fills the list of operators; this module may be imported first."""
    importlib.import_module(__package__)


def _choose(operator: str, backend: str, asked: str, device_type: str, dtype: torch.dtype) -> str:
    """What `choose` says; `asked`: the argument `backend`, or what the environment says for it."""
    source = 'backend=' if asked == backend else f'{ENVIRONMENT_VARIABLE}='
    if asked == 'auto':
        return _fastest(operator, device_type, dtype)
    if asked not in BACKENDS:
        raise ValueError(f"{operator}: {source}{asked!r} is unknown; expected 'auto' or one of {list(BACKENDS)}")
    why_not = _operators[operator].why_not
    reason = why_not(asked, device_type, dtype)
    if reason is not None:
        raise BackendUnavailableError(
            f'{operator}: {source}{asked!r} cannot run on {device_type}: {reason}. '
            f"Backends that can run here: {able(operator, device_type, dtype)}; or leave the choice to 'auto'."
        )
    if asked == 'triton':
        what = f"{operator} on {device_type}: using the triton backend, as {source}'triton' asks"
        _log_once(f'{what}; what is asked for by name need not prove itself first')
    return asked


def choose(operator: str, backend: str, device_type: str, dtype: torch.dtype = torch.float32) -> str:
    """Return the backend that runs `operator`: the argument, else the environment variable, else what `auto` takes.

    'auto' comes back where triton can run: each pass of each call then asks `resolve`, with its tensors at hand.
    Constant under torch.compile: what can run is found when the graph is traced, what has proved itself when it runs.

    Raises:
        ValueError: a name that is no backend.
        BackendUnavailableError: a backend that cannot run, with the reason and what can.
    """
    if _exporting.get():
        return _exporting.get()
    asked = (os.environ.get(ENVIRONMENT_VARIABLE) or backend) if backend == 'auto' else backend
    # what else the answer depends on; reading the environment takes longer than all the rest
    triton = getattr(sys.modules.get('triton'), '__version__', None)
    interpreted = (
        None if device_type == 'cuda' else (os.environ.get('TRITON_INTERPRET'), os.environ.get(VERIFY_VARIABLE))
    )
    key = (operator, backend, asked, device_type, dtype, _why_not, triton, interpreted)
    chosen = _chosen.get(key)
    if chosen is None:
        chosen = _chosen[key] = _choose(operator, backend, asked, device_type, dtype)
    return chosen


# What torch.compiler.assume_constant_result does; calling it would import torch._dynamo (a second, and triton) with us.
choose._dynamo_marked_constant = True


@contextlib.contextmanager
def exporting(opaque: bool = False):
    """Context for exporters, whatever backend is asked for.

    Args:
        opaque: leave operators whole, as nodes `torch.ops.mmvmamba.*`, for an exporter that translates them. Else they
            become standard operators of PyTorch's, with `torch.ops.higher_order.scan` for loops.
    """
    token = _exporting.set('torch' if opaque else DECOMPOSED)
    try:
        yield
    finally:
        _exporting.reset(token)


def verify_mode() -> str:
    """What MMVMAMBA_VERIFY says, 'first' by default."""
    mode = os.environ.get(VERIFY_VARIABLE) or VERIFY_MODES[0]
    if mode not in VERIFY_MODES:
        raise ValueError(f'{VERIFY_VARIABLE}={mode!r} is unknown; expected one of {list(VERIFY_MODES)}')
    return mode


def resolve(operator: str, direction: str, run, arguments: tuple) -> str:
    """The backend of a pass that `choose` left open: 'triton' if what it launches has proved itself, else 'torch'.

    Args:
        operator: public name.
        direction: 'forward' or 'backward'.
        run: calls the triton implementation with the arguments.
        arguments: what the implementation is given.

    Raises:
        RuntimeError: while a CUDA graph is captured, what is launched has not proved itself yet.
    """
    return importlib.import_module('.verify', __package__).resolve(operator, direction, run, arguments)


_ONCE_PROVED = ', each variant once it has proved itself on this GPU'


def _fastest(operator: str, device_type: str, dtype: torch.dtype) -> str:
    """First backend that can run; 'auto' for triton, which each variant decides."""
    why_not = _operators[operator].why_not
    reasons = []
    for backend in BACKENDS:
        # the interpreter is for tests, which say so when they want it here
        if backend == 'triton' and os.environ.get('TRITON_INTERPRET') == '1' and not os.environ.get(VERIFY_VARIABLE):
            continue
        reason = why_not(backend, device_type, dtype)
        if reason is None:
            passed_over = f' ({"; ".join(reasons)})' if reasons else ''
            how = ''
            if backend == 'triton':
                how = f' unchecked ({VERIFY_VARIABLE}=off)' if verify_mode() == 'off' else _ONCE_PROVED
            _log_once(f'{operator} on {device_type}: using the {backend} backend{how}{passed_over}')
            return 'auto' if backend == 'triton' else backend
        if (backend, device_type) != ('triton', 'cpu'):  # nobody expects it there
            reasons.append(f'not {backend}: {reason}')
    raise BackendUnavailableError(f'{operator}: no backend can run on {device_type}: {"; ".join(reasons)}')


@functools.cache
def _log_once(text: str) -> None:
    _logger.info('%s', text)


def forget() -> None:
    """Drop what was chosen, and log it again."""
    _chosen.clear()
    _log_once.cache_clear()


def full_precision(device: torch.device):
    """Context in which autocast leaves the operators' own arithmetic alone: state and sums stay float32."""
    return contextlib.nullcontext() if device.type == 'meta' else torch.autocast(device.type, enabled=False)


def autocasts(device: torch.device) -> bool:
    """Whether PyTorch converts what its own operators get on this device; it has no answer for meta tensors."""
    return device.type != 'meta' and torch.is_autocast_enabled(device.type)
