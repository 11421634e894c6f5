"""Verdicts on disk: one JSON file a machine, beside what Triton compiled there."""

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch

SOURCES = Path(__file__).resolve().parents[1]
"""Folder of the kernels: a changed byte of any of its Python files makes all verdicts void."""

_logger = logging.getLogger('mmvmamba.kernels')
_said: set[str] = set()


class Verdict(NamedTuple):
    """What a check found.

    Attributes:
        passed: whether `auto` may launch the variant.
        reason: why not, in words.
        errors: result or gradient to its relative error, the `torch` backend's, and the limit.
        seconds: that the check took, compilation included.
        kept: whether it is worth keeping; not where the check itself could not run.
    """

    passed: bool
    reason: str = ''
    errors: Mapping[str, list[float]] = MappingProxyType({})
    seconds: float = 0.0
    kept: bool = True

    def as_json(self) -> dict:
        """What `parse` reads."""
        return dict(self._asdict(), errors=dict(self.errors))

    @classmethod
    def parse(cls, entry) -> 'Verdict':
        """From JSON; raises ValueError for what `as_json` does not write."""
        if not isinstance(entry, dict) or not isinstance(entry.get('passed'), bool):
            raise ValueError(f'no verdict: {str(entry)[:80]}')
        errors = entry.get('errors', {})
        if not isinstance(errors, dict) or not isinstance(entry.get('reason', ''), str):
            raise ValueError(f'no verdict: {str(entry)[:80]}')
        kept = entry.get('kept', True) is True
        return cls(entry['passed'], entry.get('reason', ''), errors, float(entry.get('seconds', 0.0)), kept)


def machine(device: torch.device) -> dict[str, str]:
    """All that a verdict rests on: kernels, Triton and what changes its output, PyTorch, driver, GPU."""
    import triton

    name, capability = _gpu(device)
    return dict(
        kernels=_hash_of(SOURCES),
        triton=triton.__version__,
        options=_compiler_options(),
        torch=torch.__version__,
        driver=_driver(),
        gpu=name,
        capability=capability,
    )


@functools.cache
def _hash_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob('*.py')):
        digest.update(f'{path.relative_to(folder).as_posix()}\0'.encode() + path.read_bytes() + b'\0')
    return digest.hexdigest()[:16]


def _compiler_options() -> str:
    """Environment variables that make Triton compile to something else, as its own cache counts them."""
    from triton._C import libtriton

    read = getattr(libtriton, 'get_cache_invalidating_env_vars', dict)
    return ' '.join(f'{name}={value}' for name, value in sorted(read().items()))


@functools.cache
def _driver() -> str:
    """Version of the GPU's driver; the runtime's own number where nothing says more."""
    for path in ('/proc/driver/nvidia/version', '/sys/module/amdgpu/version'):
        with contextlib.suppress(OSError):
            return Path(path).read_text().splitlines()[0].strip()
    nvidia_smi = shutil.which('nvidia-smi')
    if nvidia_smi:
        query = [nvidia_smi, '--query-gpu=driver_version', '--format=csv,noheader']
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(query, capture_output=True, text=True, timeout=60)
            if done.returncode == 0 and done.stdout.strip():
                return done.stdout.splitlines()[0].strip()
    return str(torch.version.cuda or torch.version.hip or 'none')


def _gpu(device: torch.device) -> tuple[str, str]:
    """Name and capability; tensors that are on no GPU belong to what Triton runs on instead."""
    if device.type == 'cuda':
        properties = torch.cuda.get_device_properties(device)
        return properties.name, getattr(properties, 'gcnArchName', f'{properties.major}.{properties.minor}')
    import triton

    if triton.knobs.runtime.interpret:
        return "Triton's interpreter", 'none'
    driver = triton.runtime.driver.active
    return str(driver.get_current_device()), str(driver.get_current_target().arch)


class Store:
    """Verdicts of one machine; reading never fails, and an unwritable folder only means that nothing is kept.

    Args:
        device: the GPU.
        folder: where the file is; beside Triton's compiled kernels (`TRITON_CACHE_DIR`, `TRITON_HOME`) by default.
    """

    def __init__(self, device: torch.device, folder: Path | None = None):
        self.machine = machine(device)
        text = json.dumps(self.machine, sort_keys=True)
        self.identity = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = folder or default_folder()
        self.path = self.folder / f'{self.identity}.json'

    def entries(self) -> dict[str, dict]:
        """Everything kept, key to what `keep` was given; what cannot be read counts as not there, with a warning."""
        try:
            content = json.loads(self.path.read_text(encoding='utf-8'))
            entries = content['verdicts']
            for entry in entries.values():
                Verdict.parse(entry)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            _say_once(f'{self.path} cannot be read ({error!r}): kernels prove themselves again')
            return {}
        return entries

    def read(self, key: str) -> Verdict | None:
        """The verdict kept under a key."""
        entry = self.entries().get(key)
        return None if entry is None else Verdict.parse(entry)

    def keep(self, key: str, verdict: Verdict, **about) -> None:
        """Add a verdict and what helps a reader; whole or not at all. Call it under `lock`."""
        entries = self.entries()
        entries[key] = dict(about, **verdict.as_json())
        del entries[key]['kept']
        text = json.dumps(dict(machine=self.machine, verdicts=entries), indent=1)
        temporary = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                'w', dir=self.folder, suffix='.part', delete=False, encoding='utf-8'
            ) as file:
                temporary = file.name
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, self.path)
        except OSError as error:
            _say_once(f'{self.path} cannot be written ({error}): the next process checks its kernels again')
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    @contextlib.contextmanager
    def lock(self):
        """Exclusive among processes; where the file system locks nothing, nobody waits."""
        with contextlib.ExitStack() as stack:
            try:
                import fcntl

                self.folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(self.path.with_suffix('.lock').open('a'))
                fcntl.flock(file, fcntl.LOCK_EX)  # closing the file, or the end of the process, gives it back
            except (ImportError, OSError) as error:
                _logger.debug('no lock for %s: %r', self.path, error)
            yield


def default_folder() -> Path:
    """The folder of verdicts inside Triton's cache."""
    import triton

    return Path(triton.knobs.cache.dir) / 'mmvmamba-verdicts'


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        _logger.warning('%s', text)
