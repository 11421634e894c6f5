"""Running compiled functions on as many threads as PyTorch was given.

numba's OpenMP threads serve. Plain Python threads were tried first: between two of PyTorch's operations its own threads
spin for milliseconds, and two threads then ran no faster than one. A single thread needs no layer at all, which makes
it safe in forked data-loader workers: PyTorch sets them to one thread.
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
