"""Running compiled functions on PyTorch's own threads.

They are called through the OpenMP library that PyTorch itself is linked to. Threads of anybody else's, numba's or
Python's, would have to share the cores with PyTorch's, which spin for milliseconds after each of its operations.
Where PyTorch has no such library (macOS, Windows), Python's threads do the work: the functions need no interpreter.
"""

import ctypes
import functools
import os
import sys
import threading
from pathlib import Path

import torch

_process = os.getpid()


@functools.cache
def _openmp():
    """`GOMP_parallel(function, data, threads, flags)`, which runs `function(data)` on every thread; None if missing."""
    if sys.platform != 'linux':
        return None
    library = Path(torch.__file__).parent / 'lib' / 'libtorch_cpu.so'
    try:
        parallel = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_LAZY).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return parallel


def run(function, data: int, tasks: int) -> None:
    """Call a numba cfunc with an address on as many threads as PyTorch was given; the calls share the tasks out.

    One thread in a forked process, which has inherited the memory of PyTorch's threads but not the threads.
    """
    threads = torch.get_num_threads() if os.getpid() == _process else 1
    if tasks == 0:
        return
    if threads == 1 or tasks == 1:
        function.ctypes(data)
    elif (parallel := _openmp()) is not None:
        parallel(function.address, data, threads, 0)
    else:
        helpers = [threading.Thread(target=function.ctypes, args=(data,)) for _ in range(min(threads, tasks) - 1)]
        for helper in helpers:
            helper.start()
        function.ctypes(data)
        for helper in helpers:
            helper.join()
