"""Two gloo processes walk the same way as one with the same global batch: DDP, and FSDP with shards of everything."""

import functools
import json
import os
import socket
import subprocess
import sys

import distributed_runs
import pytest
import torch
from tool_runs import ROOT

if not torch.distributed.is_available():
    pytest.skip('this PyTorch has no torch.distributed', allow_module_level=True)


def run(kind, backbone, processes):
    """Rank 0's report; started without torchrun, which takes longer."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(processes):
        environment = dict(
            os.environ, OMP_NUM_THREADS='1', RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes),
            MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port),
        )  # fmt: skip
        command = [sys.executable, str(ROOT / 'tests/distributed_runs.py'), kind, backbone]
        started.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    try:
        outputs = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), outputs
    return json.loads(outputs[0][0].splitlines()[-1])


@functools.cache
def alone(backbone):
    """The report of one process, which is this one."""
    threads = torch.get_num_threads()
    try:
        return distributed_runs.train('alone', backbone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(('kind', 'backbone'), [('ddp', 'VMamba'), ('fsdp', 'VMamba'), ('ddp', 'FastVim')])
def test_two_processes_have_the_loss_curve_of_one(kind, backbone):
    """To rounding: a sum over a batch in another order, amplified by five steps of AdamW."""
    expected = alone(backbone)
    found = run(kind, backbone, 2)
    assert found['losses'] == pytest.approx(expected['losses'], rel=1e-4)
    assert found['losses'][-1] != pytest.approx(found['losses'][0], rel=1e-2), 'it learns something'
    assert found['gloo_threads'] == [], 'a thread that outlives its group may die with the interpreter'
    if kind == 'fsdp':
        assert found['parameters'] < 0.6 * expected['parameters'], 'each process holds about half'
