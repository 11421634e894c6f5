"""How much memory a function needs at its highest."""

import ctypes
import gc
import sys
import threading
from collections.abc import Callable

import torch


def peak_memory(function: Callable[[], object]) -> int:
    """Bytes that `function` needs at most beyond what is held when it starts.

    On a GPU what the allocator handed out; on a CPU what the process holds, sampled every millisecond.

    Raises:
        ImportError: no psutil, which reads what the process holds.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    try:
        import psutil
    except ImportError as error:
        raise ImportError('measuring memory on a CPU needs psutil: pip install psutil') from error
    _release_freed_memory()
    process = psutil.Process()
    before = highest = process.memory_info().rss
    done = threading.Event()

    def watch():
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return highest - before


def _release_freed_memory() -> None:
    """Give the system back what the C library keeps for later; otherwise a second call seems to need nothing."""
    gc.collect()
    if sys.platform == 'linux':
        trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # musl has none
        if trim is not None:
            trim(0)
