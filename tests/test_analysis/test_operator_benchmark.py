"""The benchmark of operators: each has its rows, on every backend."""

from mmvmamba.kernels import dispatch

from mmvmamba.analysis import operator_benchmark


def test_a_row_for_every_operator_pass_and_backend():
    names = list(operator_benchmark.CASES)
    assert set(names) == {name for name, operator in dispatch._operators.items() if 'triton' in operator._modules}
    rows = operator_benchmark.operators(names, batch=1, side=3, channels=4, dtype='fp32', repeat=1)
    timed = {(row['operator'], row['pass']) for row in rows if row['backend'] == 'torch' and float(row['p50 ms'])}
    assert timed == {(name, way) for name in names for way in ('forward', 'forward + backward')}
    assert not any(row['note'] for row in rows)
    assert len({tuple(row) for row in rows}) == 1
