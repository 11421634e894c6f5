"""The benchmark of backbones: a row for each, and one that says what is missing."""

import importlib.util
from pathlib import Path

import torch

from mmvmamba.analysis import benchmark, tables
from mmvmamba.analysis.memory import peak_memory

CONFIG = Path(__file__).resolve().parents[2] / 'configs/demo/maskrcnn_vmamba_shapes.py'


def test_rows_and_plot(tmp_path):
    options = dict(batch=1, shapes=None, train=False, amp=False, every=False, repeat=1, plot=tmp_path / 'm.png')
    rows = benchmark.model([str(CONFIG)], [32, 64], **options)
    ours = [row for row in rows if row['backbone'] == CONFIG.stem]
    assert [row['images'] for row in ours] == ['1 x 32 x 32', '1 x 64 x 64']
    assert all(float(row['images/s']) > 0 for row in ours)
    assert {'Swin-T', 'ResNet-50', 'ConvNeXt-T'} <= {row['backbone'] for row in rows}
    if importlib.util.find_spec('mmpretrain') is None:
        assert {row['note'] for row in rows if row['backbone'] == 'ConvNeXt-T'} == {'mmpretrain is not installed'}
    assert tables.markdown(rows).count('\n') == len(rows) + 1
    assert (tmp_path / 'm.png').stat().st_size > 5000


def test_memory_is_that_of_the_call_again_and_again():
    needs = [peak_memory(lambda: torch.ones(2**24).sum() * 0) for _ in range(3)]  # 64 MiB
    assert all(0.9 * 2**26 < need < 1.5 * 2**26 for need in needs)
