"""Processes on an emulated GPU: one that checks kernels, as `kernels.verify.worker` does on a GPU, one that uses it.

Needs ptxsim on the path. Examples:
    python tests/emulated_runs.py CACHE worker
    python tests/emulated_runs.py CACHE user
"""

import os
import sys

import torch
from mmvmamba.kernels import depthwise_conv_silu, verify
from mmvmamba.kernels.verify import worker
from ptxsim import device


def use() -> None:
    """Call an operator and print what is kept of its verdict."""
    torch.manual_seed(0)
    depthwise_conv_silu(torch.randn(1, 2, 3, 8), torch.randn(8, 1, 1, 1), backend='auto')
    for entry in verify.store_of(torch.device('cpu')).entries().values():
        print(entry['passed'], entry['time'], entry['reason'])


if __name__ == '__main__':
    cache, what = sys.argv[1:]
    worker.command = [sys.executable, __file__, cache, 'worker']
    capability, multiprocessors = (
        int(os.environ.get(f'PTXSIM_{name}', default)) for name, default in (('CAPABILITY', 80), ('MULTIPROCESSORS', 2))
    )
    with device(capability, multiprocessors, cache=cache, poison=False):
        {'worker': worker.serve, 'user': use}[what]()
