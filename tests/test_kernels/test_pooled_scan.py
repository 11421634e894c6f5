"""`pooled_scan`: every backend, axis and pooling against the reference; how long the sequence is that it scans."""

import itertools

import pytest
import torch
from mmvmamba.kernels import BACKENDS, pooled_scan
from mmvmamba.kernels.pooled_scan import reference, torch_blocked
from mmvmamba.kernels.pooled_scan.op import _operator
from mmvmamba.kernels.testing import TOLERANCE, assert_close, output_and_gradients
from mmvmamba.kernels.testing import pooled_scan_by_name as call
from mmvmamba.kernels.testing import pooled_scan_inputs as inputs

CASES = {
    'plain': dict(),
    'n1': dict(states=1),
    'n16': dict(states=16, channels=4, height=3, width=5),
    'one_row': dict(height=1, width=9),
    'one_column': dict(height=9, width=1),
    'one_token': dict(height=1, width=1),
    'lines_shorter_than_the_window': dict(height=3, width=2),
    'primes': dict(height=11, width=7, channels=5),
    'square': dict(height=8, width=8, channels=16),
    'wide_rank': dict(rank=24, channels=6, height=3, width=4),
    'window_of_one': dict(window=1),
    'window_of_seven': dict(window=7, height=2, width=3),
    'no_norm': dict(norm=False),
    'batch0': dict(batch=0),
    'batch1': dict(batch=1, height=17, width=16),
}
VECTORS = {
    'one_row': dict(height=1, width=9),
    'one_column': dict(height=9, width=1),
    'one_token': dict(height=1, width=1),
    'lines_shorter_than_the_window': dict(height=3, width=2),
    'primes': dict(height=11, width=7),
    'n16': dict(states=16, height=3, width=5),
    'no_norm': dict(norm=False),
    'batch0': dict(batch=0),
    'batch3': dict(batch=3, channels=48),
}
AXES = ['row', 'column']
POOLS = ['mean', 'max', None]
ON_CPU = [name for name in BACKENDS if name not in ('reference', 'triton') and _operator.why_not(name, 'cpu') is None]


@pytest.fixture(params=ON_CPU)
def pooled_backend(request):
    """Every compiled or vectorised backend of this operator on the CPU."""
    return request.param


@pytest.fixture(params=['reference', *ON_CPU])
def pooled_backend_or_reference(request):
    return request.param


def exact(arguments):
    return {name: value.double() for name, value in arguments.items()}


@pytest.mark.parametrize('pool', POOLS)
@pytest.mark.parametrize('axis', AXES)
@pytest.mark.parametrize('case', CASES)
def test_matches_reference(case, axis, pool, pooled_backend):
    arguments = inputs(**CASES[case])
    y, grads = output_and_gradients(call, arguments, axis=axis, pool=pool, backend=pooled_backend)
    expected, expected_grads = output_and_gradients(call, exact(arguments), axis=axis, pool=pool, backend='reference')
    assert_close('y', y, expected, TOLERANCE[torch.float32])
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], TOLERANCE[torch.float32])


@pytest.mark.skipif('cpu' not in ON_CPU, reason='numba is not installed')
@pytest.mark.parametrize('pool', ['mean', None])
@pytest.mark.parametrize('axis', AXES)
@pytest.mark.parametrize('case', VECTORS)
def test_compiled_passes_match_reference(case, axis, pool, monkeypatch):
    """Whole vectors of channels and windows of four: nothing of the vectorised backend's two passes is used."""
    arguments = inputs(**{'channels': 32, **VECTORS[case]})
    expected, expected_grads = output_and_gradients(call, exact(arguments), axis=axis, pool=pool, backend='reference')
    for name in ('forward', 'backward'):
        monkeypatch.delattr(torch_blocked, name)
    y, grads = output_and_gradients(call, arguments, axis=axis, pool=pool, backend='cpu')
    again, grads_again = output_and_gradients(call, arguments, axis=axis, pool=pool, backend='cpu')
    assert_close('y', y, expected, TOLERANCE[torch.float32])
    assert torch.equal(y, again)
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], TOLERANCE[torch.float32])
        assert torch.equal(grad, grads_again[name]), name


@pytest.mark.parametrize('pool', ['mean', 'max'])
@pytest.mark.parametrize('axis', AXES)
def test_scaling(axis, pool, pooled_backend):
    arguments = inputs()
    options = dict(axis=axis, pool=pool, scaling=0.25)
    y, grads = output_and_gradients(call, arguments, backend=pooled_backend, **options)
    expected, expected_grads = output_and_gradients(call, exact(arguments), backend='reference', **options)
    assert_close('y', y, expected, TOLERANCE[torch.float32])
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], TOLERANCE[torch.float32])
    unscaled = call(**arguments, axis=axis, pool=pool, backend='reference')
    assert not torch.allclose(unscaled, expected.float(), atol=1e-3)


@pytest.mark.parametrize('pool', POOLS)
@pytest.mark.parametrize('axis', AXES)
def test_gradcheck(axis, pool):
    arguments = inputs(1, 3, 2, 4, states=2, rank=2, dtype=torch.float64)
    leaves = {name: value.requires_grad_() for name, value in arguments.items()}
    for backend in ('reference', 'torch'):
        assert torch.autograd.gradcheck(
            lambda *values, backend=backend: call(
                **dict(zip(leaves, values, strict=True)), axis=axis, pool=pool, backend=backend
            ),
            tuple(leaves.values()),
        )


@pytest.mark.parametrize('pool', POOLS)
def test_columns_are_the_rows_of_the_transposed_grid(pool, pooled_backend_or_reference):
    arguments = inputs()
    columns, column_grads = output_and_gradients(
        lambda **a: call(**a, axis='column', pool=pool, backend=pooled_backend_or_reference).transpose(1, 2), arguments
    )
    transposed = dict(arguments, xz=arguments['xz'].transpose(1, 2))
    rows, row_grads = output_and_gradients(call, transposed, pool=pool, backend=pooled_backend_or_reference)
    assert_close('y', columns, rows, 1e-6)
    assert_close('xz', column_grads.pop('xz').transpose(1, 2), row_grads['xz'], 1e-6)
    for name, grad in column_grads.items():
        assert_close(name, grad, row_grads[name], 2e-6)


@pytest.mark.parametrize(('height', 'width'), [(5, 7), (9, 2), (1, 6)])
def test_scans_one_token_a_line(height, width, monkeypatch):
    """The paper's promise: H or W steps, never H*W, except where nothing is pooled."""
    lengths = []

    def counting(u, *arguments):
        lengths.append(u.shape[2])
        return original(u, *arguments)

    original = reference.selective_scan
    monkeypatch.setattr(reference, 'selective_scan', counting)
    arguments = inputs(height=height, width=width)
    for axis, pool in itertools.product(AXES, POOLS):
        lengths.clear()
        call(**arguments, axis=axis, pool=pool, backend='reference')
        lines = {'row': height, 'column': width}[axis]
        assert lengths == 2 * [height * width if pool is None else lines], (axis, pool)


@pytest.mark.parametrize('pool', POOLS)
def test_torch_backend_scans_as_long_as_the_reference(pool, monkeypatch):
    lengths = []

    def counting(u, *arguments):
        lengths.append(u.shape[1])
        return original.forward(u, *arguments)

    original = torch_blocked.VECTORISED
    monkeypatch.setattr(torch_blocked, 'VECTORISED', original._replace(forward=counting))
    call(**inputs(height=5, width=7), axis='column', pool=pool, backend='torch')
    assert lengths == 2 * [35 if pool is None else 7]


@pytest.mark.parametrize('pool', POOLS)
def test_both_ways_to_scan_agree(pool, monkeypatch):
    """The torch backend scans all states at once where that is small, else one after another."""
    arguments = inputs(states=5, height=6, width=11)
    options = dict(axis='column', pool=pool, backend='torch')
    expected, expected_grads = output_and_gradients(call, arguments, **options)
    monkeypatch.setattr(torch_blocked, '_STATE_ELEMENTS', {'cpu': 0})
    y, grads = output_and_gradients(call, arguments, **options)
    assert not torch.equal(grads['forth_A'], expected_grads['forth_A']), 'the limit has no effect'
    assert_close('y', y, expected, 2e-6)
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], TOLERANCE[torch.float32])


def test_pooling_ties_share_the_gradient(pooled_backend_or_reference):
    """A row of equal tokens, away from the ends of the sequence where the convolution sees zeros."""
    arguments = inputs(batch=1, height=3, width=6, window=1)
    arguments['xz'] = arguments['xz'][:, :, :1].repeat(1, 1, 6, 1)
    _, grads = output_and_gradients(
        lambda **a: call(**a, pool='max', backend=pooled_backend_or_reference).mean((1, 2)), arguments
    )
    per_row = grads['xz'][0, 1]
    assert_close('xz', per_row, per_row[:1].expand_as(per_row), 1e-5)


@pytest.mark.parametrize('pool', POOLS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('parameter', [None, 'half'])
def test_half_precision(dtype, parameter, pool, pooled_backend_or_reference):
    arguments = inputs(dtype=dtype, parameter=parameter and dtype)
    y, grads = output_and_gradients(call, arguments, pool=pool, backend=pooled_backend_or_reference)
    expected, expected_grads = output_and_gradients(call, exact(arguments), pool=pool, backend='reference')
    assert y.dtype == dtype
    assert_close('y', y, expected, TOLERANCE[dtype])
    for name, grad in grads.items():
        assert grad.dtype == arguments[name].dtype
        assert_close(name, grad, expected_grads[name], 2 * TOLERANCE[dtype])


def test_a_zeroed_gradient_would_be_noticed(pooled_backend):
    arguments = inputs()
    _, grads = output_and_gradients(call, arguments, backend=pooled_backend)
    for name, grad in grads.items():
        with pytest.raises(AssertionError, match='relative error'):
            assert_close(name, torch.zeros_like(grad), grad, TOLERANCE[torch.float32])


def test_batches_are_cut_into_blocks(monkeypatch, pooled_backend):
    arguments = inputs(batch=5)
    whole, whole_grads = output_and_gradients(call, arguments, backend=pooled_backend)
    monkeypatch.setattr(
        torch_blocked, 'blocks', lambda batch, *_: [slice(i, min(i + 2, batch)) for i in range(0, batch, 2)]
    )
    y, grads = output_and_gradients(call, arguments, backend=pooled_backend)
    assert_close('y', y, whole, 1e-6)
    for name, grad in grads.items():
        assert_close(name, grad, whole_grads[name], 2e-6)


def test_non_contiguous_input(pooled_backend):
    arguments = inputs()
    strided = dict(arguments, xz=arguments['xz'].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))
    assert not strided['xz'].is_contiguous()
    y, grads = output_and_gradients(call, strided, axis='column', backend=pooled_backend)
    expected, expected_grads = output_and_gradients(call, arguments, axis='column', backend=pooled_backend)
    assert_close('y', y, expected, 1e-6)
    assert_close('xz', grads['xz'], expected_grads['xz'], 1e-6)


def test_runs_are_bit_identical(pooled_backend):
    arguments = inputs(height=13, width=12)
    first, first_grads = output_and_gradients(call, arguments, backend=pooled_backend)
    second, second_grads = output_and_gradients(call, arguments, backend=pooled_backend)
    assert torch.equal(first, second)
    assert all(torch.equal(first_grads[name], second_grads[name]) for name in first_grads)


@pytest.mark.parametrize('norm', [True, False], ids=['norm', 'no_norm'])
def test_custom_operator_registration(norm, pooled_backend):
    tensors = [value.requires_grad_() for value in inputs(1, 3, 2, norm=norm).values()]
    if not norm:
        tensors += [None, None]
    torch.library.opcheck(
        torch.ops.mmvmamba.pooled_scan.default, (*tensors, 'column', 'mean', 1.0, 1e-5, pooled_backend)
    )


@pytest.mark.parametrize('pool', POOLS)
def test_compiles_without_graph_break(pool, pooled_backend):
    arguments = inputs(height=3, width=4)
    compiled = torch.compile(call, fullgraph=True, backend='aot_eager')
    y, grads = output_and_gradients(compiled, arguments, pool=pool, backend=pooled_backend)
    expected, expected_grads = output_and_gradients(call, arguments, pool=pool, backend=pooled_backend)
    assert_close('y', y, expected, 1e-6)
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], 1e-5)


def test_autocast_does_not_reach_inside(pooled_backend_or_reference):
    arguments = inputs(dtype=torch.bfloat16)

    def under_autocast(**leaves):
        with torch.autocast('cpu', torch.bfloat16):
            return call(**leaves, backend=pooled_backend_or_reference)

    y, grads = output_and_gradients(under_autocast, arguments)
    expected, expected_grads = output_and_gradients(call, arguments, backend=pooled_backend_or_reference)
    assert torch.equal(y, expected)
    assert all(torch.equal(grads[name], expected_grads[name]) for name in grads)


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        (dict(axis='diagonal'), ValueError, "axis='diagonal' is unknown; expected one of"),
        (dict(pool='median'), ValueError, "pool='median' is unknown; expected one of"),
        (dict(pool=None, scaling=0.5), ValueError, 'scaling=0.5 has nothing to scale'),
        (dict(xz=torch.zeros(2, 5, 16)), ValueError, r'xz has shape \(2, 5, 16\); expected \(B, H, W, 2D\)'),
        (dict(xz=torch.zeros(2, 0, 7, 16)), ValueError, 'only the batch may be empty'),
        (dict(xz=torch.zeros(2, 5, 7, 15)), ValueError, r'expected \(B, H, W, 2D\)'),
        (dict(xz=torch.zeros(2, 5, 7, 18)), ValueError, r'forth.conv_weight has shape .* to fit xz of shape'),
        (dict(forth_conv_weight=torch.zeros(8, 4)), ValueError, r'forth.conv_weight has shape \(8, 4\)'),
        (dict(back_x_proj_weight=torch.zeros(6, 8)), ValueError, r'back.x_proj_weight .*R \+ 2N'),
        (dict(back_A=torch.zeros(8, 0)), ValueError, 'k, R and N may not be 0'),
        (dict(forth_Ds=[1.0]), TypeError, 'forth.Ds must be a tensor'),
        (dict(forth_dt_bias=torch.zeros(8, dtype=torch.float16)), TypeError, 'forth.dt_bias has dtype torch.float16'),
        (dict(norm_weight=None), ValueError, 'one of norm_weight and norm_bias is None'),
        (dict(norm_bias=torch.zeros(9)), ValueError, r'norm_bias has shape \(9,\)'),
        (dict(backend='cuda'), ValueError, "backend='cuda' is unknown"),
    ],
)
def test_bad_input(change, error, words):
    with pytest.raises(error, match=words):
        call(**dict(inputs(), **change))


def test_a_direction_is_one_tuple():
    with pytest.raises(TypeError, match='forth must be a Direction of 7 tensors, got Tensor'):
        pooled_scan(torch.zeros(1, 2, 2, 8), torch.zeros(7), torch.zeros(7))
