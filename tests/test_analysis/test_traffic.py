"""Counting memory traffic: what is masked out does not count, an address counts once a launch."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from triton_runs import OLDEST_TRITON

from mmvmamba.analysis.traffic import Traffic, counting

pytest.importorskip('triton', minversion=OLDEST_TRITON)


def in_interpreter(code, folder):
    """Run code with Triton's interpreter on, which must be chosen before Triton is imported: its output's lines."""
    script = folder / 'script.py'
    script.write_text(textwrap.dedent(code))
    environment = dict(os.environ, TRITON_INTERPRET='1', OMP_NUM_THREADS='1')
    command = [sys.executable, '-W', 'ignore', str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split('\n')


def test_an_address_counts_once():
    traffic = Traffic('kernel')
    for addresses in ([0, 4, 8], [8, 12], [8]):
        traffic.access('read', np.array(addresses), 4)
    traffic.access('written', np.array([8, 10]), 2)
    traffic.finish()
    assert (traffic.read, traffic.written, traffic.distinct) == (24, 4, 20)


def test_masked_lanes_do_not_count_and_operations_do(tmp_path):
    lines = in_interpreter(
        """
        import torch
        import triton
        import triton.language as tl
        from mmvmamba.analysis.traffic import counting

        @triton.jit
        def add_one(p_x, p_y, n, BLOCK: tl.constexpr):
            o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
            x = tl.load(p_x + o, mask=o < n, other=0.0)
            tl.store(p_y + o // 2, x + tl.load(p_x), mask=o < n)

        x, y = torch.ones(10, dtype=torch.bfloat16), torch.empty(10)
        with counting(1) as counts:
            add_one[(3,)](x, y, 9, BLOCK=4)
            z = (y + 1).view(5, 2)
        for c in counts:
            print(c.name, c.read, c.written, c.distinct)
        """,
        tmp_path,
    )
    # 9 numbers and 3 times the first one, of 2 bytes; 9 stores of 4 bytes to 5 places
    assert lines[:2] == ['add_one 24 36 38', 'add.Tensor 40 40 80']


def test_needs_the_interpreter(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    with pytest.raises(RuntimeError, match='set TRITON_INTERPRET=1'), counting(1):
        pass


def test_the_mixer_stays_near_its_floor(tmp_path):
    """A grid of 12 x 16 tokens cut as for a machine that one image fills."""
    lines = in_interpreter(
        """
        from mmvmamba.analysis.traffic import traffic

        for row in traffic('pooled_scan', 'tiny', 12, 16, 1, 'mean', 1):
            print(row['step'], row['both'], row['every address once'])
        """,
        tmp_path,
    )
    counts = {name: (float(both), float(once)) for name, both, once in (line.split() for line in lines if line)}
    assert counts['_pool_fwd'][1] + counts['_gate_fwd'][1] < 9.8
    assert counts['_pool_fwd'][0] + counts['_gate_fwd'][0] < 11.8
    assert counts['sum'][1] > 8
