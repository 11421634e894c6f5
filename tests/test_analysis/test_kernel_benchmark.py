"""The kernels' table: what ours are compared with computes the same, and every figure says where it comes from."""

import json

import pytest
import torch
from mmvmamba.kernels import ss2d_norm
from mmvmamba.kernels.testing import assert_close, output_and_gradients, ss2d_inputs

from mmvmamba.analysis import kernel_benchmark, record, unfused


@pytest.mark.parametrize('states', [1, 2])
def test_the_unfused_pipeline_computes_the_same(states):
    """More positions than a chunk of chunks has, so that carries go through two levels."""
    arguments = ss2d_inputs(batch=2, height=11, width=29, channels=4, states=states)
    arguments |= {'norm_weight': torch.rand(4), 'norm_bias': torch.randn(4)}

    def published(x, **others):
        return unfused.ss2d_norm(x.permute(0, 3, 1, 2), **others, scan=unfused.scan)

    y, grads = output_and_gradients(published, arguments)
    exact = {k: v.double() for k, v in arguments.items()}
    expected, expected_grads = output_and_gradients(ss2d_norm, exact, backend='reference')
    assert_close('y', y, expected, 1e-5)
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], 1e-5)


def test_rows_cover_every_candidate_and_pass():
    sizes = dict(height=3, width=4, channels=4, states=1, batch=1)
    rows = kernel_benchmark.kernels(None, **sizes, dtype='fp32', backends=['torch'], compiled=False, repeat=1)
    timed = {(row['pass'], row['candidate']) for row in rows if row['p50 ms']}
    assert timed == {(p, c) for p in ('forward', 'forward + backward') for c in ('torch', 'unfused PyTorch')}
    missing = {row['candidate']: row['timed'] for row in rows if not row['p50 ms']}
    assert all(note.endswith('is not installed') for note in missing.values())
    assert len({tuple(row) for row in rows}) == 1


def test_a_candidate_that_fails_says_why():
    def fails():
        raise RuntimeError('no memory\nat all')

    totals = {}
    kernel_benchmark._time({'ours': lambda: None, 'theirs': fails}, 2, totals, 1, 'cpu')
    kernel_benchmark._time({'ours': lambda: None, 'theirs': lambda: None}, 1, totals, 1, 'cpu')
    assert totals['ours'].row(1, 1, None)['p50 ms']
    assert totals['theirs'].row(1, 1, None)['timed'] == 'RuntimeError: no memory'


def test_stages_of_the_published_network():
    assert kernel_benchmark._stages('tiny_s1l8', 800, 1280)[::3] == [
        (2, 200, 320, 96, 1, 6),
        (2, 25, 40, 768, 1, 48),
    ]


ABOUT = dict(sources='abc', device='a GPU', commit='1')


def report(path, tests, failures=0, skipped=0):
    counts = f'tests="{tests}" failures="{failures}" errors="0" skipped="{skipped}"'
    path.write_text(f'<testsuites><testsuite {counts}/></testsuites>')
    return path


@pytest.mark.parametrize(
    ('second', 'words'),
    [
        (dict(tests=9), '9 and 9 passed'),
        (dict(tests=9, failures=1), 'FAILED'),
        (dict(tests=9, skipped=9), 'FAILED'),
        (dict(tests=0), 'FAILED'),
    ],
)
def test_a_figure_stands_beside_the_result_of_tests_the_same_sources(second, words, tmp_path):
    out = tmp_path / 'tests.json'
    assert record.result_of_tests(ABOUT, None).startswith('not run')
    reports = [report(tmp_path / 'first.xml', 9), report(tmp_path / 'second.xml', **second)]
    assert record.write_tests(reports, ABOUT, out) == (words != 'FAILED')
    assert words in record.result_of_tests(ABOUT, out)
    assert json.loads(out.read_text())['machine'] == ABOUT
    assert record.result_of_tests(ABOUT | {'sources': 'abd'}, out).startswith('not run')
    assert record.result_of_tests(ABOUT | {'device': 'a CPU'}, out).startswith('not run')
