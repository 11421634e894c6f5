"""Running compiled functions on as many threads as PyTorch was given, and on PyTorch's own OpenMP threads.

Threads of another pool would share the cores with PyTorch's, which spin for milliseconds after every operation: two
threads then ran no faster than one. numba's OpenMP layer asks for the same libgomp that PyTorch has loaded, so the
team is the same. A single thread needs no layer at all, which makes it safe in forked data-loader workers: PyTorch sets
them to one thread.
"""

import numba
import torch


def run(serial, parallel, arguments: tuple, tasks: int) -> None:
    """Do all tasks: `serial(*arguments, first, last)` or `parallel(*arguments, tasks, threads)`."""
    threads = min(torch.get_num_threads(), tasks, numba.config.NUMBA_NUM_THREADS)
    if threads <= 1:
        serial(*arguments, 0, tasks)
        return
    before = numba.get_num_threads()
    numba.set_num_threads(threads)  # of this Python thread only
    try:
        parallel(*arguments, tasks, threads)
    finally:
        numba.set_num_threads(before)
