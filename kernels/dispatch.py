"""Which implementation of an operator runs on a device, and in words why another one cannot."""

import contextlib
import functools
import importlib
import importlib.util
import logging
import os

import torch

BACKENDS = ('triton', 'cpu', 'torch', 'reference')
"""All backend names. `auto` takes `cpu` or `torch`; `triton` and `reference` run on request."""

ENVIRONMENT_VARIABLE = 'MMVMAMBA_BACKEND'

OLDEST_TRITON = (3, 6)
"""Older ones lack parts of the language that the kernels are written in."""

_logger = logging.getLogger('mmvmamba.kernels')
_operators: dict[str, 'Operator'] = {}


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
        """Import and return the module that implements `backend`."""
        return importlib.import_module(f'.{self._modules[backend]}', self._package)

    def why_not(self, backend: str, device_type: str, dtype: torch.dtype = torch.float32) -> str | None:
        """Say why `backend` cannot run this operator on tensors of this kind, or None if it can."""
        if backend not in self._modules:
            return f'{self.name} has no {backend} implementation in this version'
        return _why_not(backend, device_type, dtype)


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
    """Map every backend to None if each operator can run on it, else to the reason why not."""
    _import_operators()
    report = {}
    for backend in BACKENDS:
        reasons = dict.fromkeys(operator.why_not(backend, device_type) for operator in _operators.values())
        reasons.pop(None, None)
        report[backend] = '; '.join(reasons) or None
    return report


def _import_operators() -> None:
    """Importing the package is what fills the list of operators; this module may be imported first."""
    importlib.import_module(__package__)


def choose(operator: str, backend: str, device_type: str, dtype: torch.dtype = torch.float32) -> str:
    """Return the backend that runs `operator`: the argument, else the environment variable, else what `auto` takes.

    Constant under torch.compile: which backend runs is decided when the graph is traced.

    Raises:
        ValueError: a name that is no backend.
        BackendUnavailableError: a backend that cannot run, with the reason and what can.
    """
    source = 'backend='
    if backend == 'auto':
        backend = os.environ.get(ENVIRONMENT_VARIABLE) or 'auto'
        source = f'{ENVIRONMENT_VARIABLE}='
    if backend == 'auto':
        return _fastest(operator, device_type, dtype)
    if backend not in BACKENDS:
        raise ValueError(f"{operator}: {source}{backend!r} is unknown; expected 'auto' or one of {list(BACKENDS)}")
    why_not = _operators[operator].why_not
    reason = why_not(backend, device_type, dtype)
    if reason is not None:
        able = [name for name in BACKENDS if why_not(name, device_type, dtype) is None]
        raise BackendUnavailableError(
            f'{operator}: {source}{backend!r} cannot run on {device_type}: {reason}. '
            f"Backends that can run here: {able}; or leave the choice to 'auto'."
        )
    return backend


# What torch.compiler.assume_constant_result does; calling it would import torch._dynamo (a second, and triton) with us.
choose._dynamo_marked_constant = True


def resolve(operator: str, direction: str, run, arguments: tuple) -> str:
    """The backend of a pass for which `choose` left it open.

    Args:
        operator: public name.
        direction: 'forward' or 'backward'.
        run: calls the triton implementation with the arguments.
        arguments: what the implementation is given.
    """
    return _fastest('ss2d' if operator == 'ss2d_norm' else operator, arguments[0].device.type, arguments[0].dtype)


@functools.cache
def _fastest(operator: str, device_type: str, dtype: torch.dtype) -> str:
    """First backend that can run; cached, which also makes the log say it once."""
    why_not = _operators[operator].why_not
    reasons = []
    for backend in BACKENDS:
        if backend == 'triton':
            # the interpreter is for tests; and kernels that no GPU has run yet must be asked for by name
            if device_type == 'cuda':
                reasons.append("not triton: its kernels have not been tested on a GPU yet; backend='triton' takes it")
            continue
        reason = why_not(backend, device_type, dtype)
        if reason is None:
            passed_over = f' ({"; ".join(reasons)})' if reasons else ''
            _logger.info('%s on %s: using the %s backend%s', operator, device_type, backend, passed_over)
            return backend
        reasons.append(f'not {backend}: {reason}')
    raise BackendUnavailableError(f'{operator}: no backend can run on {device_type}: {"; ".join(reasons)}')


def full_precision(device: torch.device):
    """Context in which autocast leaves the operators' own arithmetic alone: state and sums stay float32."""
    return contextlib.nullcontext() if device.type == 'meta' else torch.autocast(device.type, enabled=False)


def autocasts(device: torch.device) -> bool:
    """Whether PyTorch converts what its own operators get on this device; it has no answer for meta tensors."""
    return device.type != 'meta' and torch.is_autocast_enabled(device.type)
