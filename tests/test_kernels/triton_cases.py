"""Tests of the Triton operators, in Triton's interpreter (see `tests/interpreter.py`) or on a GPU."""

import importlib

import large_inputs
import pytest
import torch
from mmvmamba.kernels import depthwise_conv_silu, dispatch, selective_scan, ss2d, ss2d_norm
from mmvmamba.kernels.testing import (
    assert_close,
    load_golden,
    output_and_gradients,
    scan_inputs,
    ss2d_inputs,
)
from triton_runs import DEVICE, FLOAT32, INTERPRETED, MARKS, OLDEST_TRITON, TOLERANCES, check, check_like_input

pytest.importorskip('triton', minversion=OLDEST_TRITON)

from mmvmamba.kernels.shared_triton import launch, scan

GOLDEN_NAMES = {'u': 'u', 'delta': 'delta', 'A': 'A', 'Bs': 'B', 'Cs': 'C', 'Ds': 'D', 'delta_bias': 'delta_bias'}

pytestmark = MARKS


@pytest.fixture(params=['one_pass', 'chunked'] if INTERPRETED else ['one_pass', 'chunked', 'by_rule'])
def chunked(request, monkeypatch):
    """Walks in one piece, in chunks of one tile however few positions there are, or as the device asks for it."""
    if request.param != 'by_rule':
        programs = 1 << 30 if request.param == 'chunked' else 0
        monkeypatch.setattr(scan, 'PROGRAMS_PER_MULTIPROCESSOR', programs)
        monkeypatch.setattr(scan, 'SHORTEST_CHUNK', 16)


SS2D = {
    'n1': dict(),
    'n2': dict(batch=1, states=2),
    'n3': dict(batch=1, states=3, channels=4, height=3),
    'one_row': dict(height=1, width=19),
    'one_column': dict(height=19, width=1),
    'one_pixel': dict(height=1, width=1),
    'one_tile': dict(batch=1, height=4, width=4),
    'one_more': dict(batch=1, height=17, width=1),
    'primes': dict(batch=1, height=7, width=5, channels=5),
    'two_blocks': dict(batch=1, height=3, width=6, channels=67),
    'wide_rank': dict(batch=1, rank=24, channels=6, height=3, width=7),
    'wide_rank_of_many_states': dict(batch=1, rank=49, states=3, channels=4, height=3, width=6),
    'n16': dict(batch=1, states=16, channels=4, height=3, width=6),
    'batch0': dict(batch=0),
}
if not INTERPRETED:  # sizes of real stages
    SS2D.update(
        stage1=dict(batch=2, height=56, width=56, channels=96, rank=6),
        stage4=dict(batch=1, height=25, width=40, channels=768, rank=48),
        vanilla=dict(batch=1, height=28, width=37, channels=192, rank=6, states=16),
        chunks=dict(batch=1, height=61, width=97, channels=96, rank=6),
    )


@pytest.mark.parametrize('case', SS2D)
def test_ss2d(case, chunked):
    check(ss2d, ss2d_inputs(device=DEVICE, **SS2D[case]), FLOAT32)


@pytest.mark.parametrize('routes', ['unidi', 'bidi', 'cascade'])
def test_route_patterns(routes, chunked):
    # the cascade normalises twice: rounding is amplified where a pixel's channels nearly agree
    arguments = ss2d_inputs(batch=1, height=3, width=18, channels=4, device=DEVICE)
    check(ss2d, arguments, FLOAT32, routes=routes)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype, chunked):
    check(ss2d, ss2d_inputs(batch=1, dtype=dtype, device=DEVICE), TOLERANCES[dtype])


def test_projections_beyond_the_range_of_float16():
    arguments = ss2d_inputs(batch=1, height=4, width=5, channels=16, dtype=torch.float16, device=DEVICE)
    arguments['x'] = (2e4 * arguments['x']).clamp(-6e4, 6e4)
    arguments['x_proj_weight'] = 4 * arguments['x_proj_weight']
    y, grads = output_and_gradients(ss2d, arguments, backend='triton')
    expected = ss2d(**{k: v.double() for k, v in arguments.items()}, backend='reference')
    assert_close('y', y, expected, TOLERANCES[torch.float16])
    for name in set(grads) - {'x'}:  # the gradient of x is of its size squared: no float16
        assert grads[name].isfinite().all(), name


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('name', large_inputs.CASES)
def test_large_inputs_stay_finite(name, dtype):
    function, inputs, scaled = large_inputs.CASES[name]
    arguments = large_inputs.large(inputs, scaled, dtype, DEVICE)
    y = function(**arguments, backend='triton')
    exact = function(**{k: v.double() for k, v in arguments.items()}, backend='reference')
    assert_close('y', y, exact, TOLERANCES[dtype])  # of the inputs: products are rounded to it


def lose_one(grad):
    """Zero instead of the largest value."""
    return torch.where(grad.abs() == grad.abs().max(), 0, grad)


def test_a_wrong_gradient_is_noticed(monkeypatch):
    """A canary for all tests above: one gradient at a time is zero, or one value of it."""
    scan = importlib.import_module('mmvmamba.kernels.ss2d.triton_scan')
    arguments = ss2d_inputs(batch=1, height=2, width=3, channels=4, device=DEVICE)
    y, right = output_and_gradients(ss2d, arguments, backend='triton')
    monkeypatch.setattr(scan, 'forward', lambda *inputs: y.detach().clone())
    for name in arguments:
        for broken in (torch.zeros_like, lose_one):
            grads = dict(right, **{name: broken(right[name])})
            monkeypatch.setattr(scan, 'backward', lambda *inputs, grads=grads: tuple(grads.values()))
            with pytest.raises(AssertionError, match=f'^{name}: relative error'):
                check(ss2d, arguments, FLOAT32)


SCAN = {
    'n1': dict(length=18),
    'n2': dict(states=2, length=17),
    'n16': dict(batch=1, groups=1, states=16, channels=4, length=16),
    'one_position': dict(length=1),
    'odd_channels': dict(length=33, channels=5),
    'one_group': dict(groups=1, length=5),
    'batch0': dict(batch=0),
}


@pytest.mark.parametrize('case', SCAN)
def test_selective_scan(case, chunked):
    check(selective_scan, scan_inputs(device=DEVICE, **SCAN[case]), FLOAT32)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_selective_scan_half_precision(dtype):
    check(selective_scan, scan_inputs(dtype=dtype, length=17, device=DEVICE), TOLERANCES[dtype])


@pytest.mark.parametrize('absent', [('Ds',), ('delta_bias',), ('Ds', 'delta_bias')], ids='+'.join)
def test_absent_arguments(absent):
    arguments = dict(scan_inputs(batch=1, groups=2, length=9, device=DEVICE), **dict.fromkeys(absent))
    y, grads = output_and_gradients(selective_scan, arguments, backend='triton')
    expected, expected_grads = output_and_gradients(selective_scan, arguments, backend='reference')
    assert_close('y', y, expected, FLOAT32)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], FLOAT32)


def test_without_softplus():
    arguments = scan_inputs(batch=1, groups=2, length=19, device=DEVICE)
    arguments['delta'] = arguments['delta'].abs() * 0.1
    arguments['delta_bias'] = arguments['delta_bias'].abs() * 0.1
    check(selective_scan, arguments, FLOAT32, softplus=False)


def test_extreme_steps_stay_finite_and_right():
    arguments = scan_inputs(batch=1, groups=2, length=23, device=DEVICE)
    steps = torch.linspace(-60, 90, 23, device=DEVICE)
    arguments['delta'] = steps.expand_as(arguments['delta']).contiguous()
    check(selective_scan, arguments, FLOAT32)


@pytest.mark.parametrize('bias', [-40.0, 40.0, 3e4])
def test_extreme_steps_of_a_grid(bias, chunked):
    """Steps that all but vanish (whose gradients must keep their digits), that replace the state, that overflow exp."""
    arguments = ss2d_inputs(batch=1, height=5, width=4, device=DEVICE)
    arguments['dt_projs_bias'] = arguments['dt_projs_bias'] + bias
    y, grads = output_and_gradients(ss2d, arguments, backend='triton')
    exact = {k: v.double() for k, v in arguments.items()}
    expected, expected_grads = output_and_gradients(ss2d, exact, backend='reference')
    assert_close('y', y, expected, FLOAT32)
    for name, grad in grads.items():
        if bias < 0 or name in ('x', 'x_proj_weight', 'Ds'):
            assert_close(name, grad, expected_grads[name], FLOAT32)
        assert grad.isfinite().all(), name


def test_long_sequence_in_float16():
    length = 1_500 if INTERPRETED else 64_000
    arguments = scan_inputs(batch=1, groups=1, channels=4, length=length, dtype=torch.float16, device=DEVICE)
    arguments['A'] = 1e-4 * arguments['A']  # hardly forgets
    y = selective_scan(**arguments, backend='triton')
    expected = selective_scan(**{k: v.double() for k, v in arguments.items()}, backend='torch')
    assert_close('y', y, expected, TOLERANCES[torch.float16])


@pytest.mark.parametrize('name', ['scan_n1', 'scan_n16', 'scan_one_direction'])
def test_golden(name, data_dir):
    golden, _ = load_golden(data_dir / f'{name}.safetensors')
    leaves = {ours: golden[theirs].to(DEVICE).requires_grad_() for ours, theirs in GOLDEN_NAMES.items()}
    y = selective_scan(**leaves, backend='triton')
    assert_close('y', y.cpu(), golden['y'], FLOAT32)
    grads = torch.autograd.grad(y, list(leaves.values()), golden['dy'].to(DEVICE))
    for ours, grad in zip(leaves, grads, strict=True):
        assert_close(ours, grad.cpu(), golden[f'grad.{GOLDEN_NAMES[ours]}'], FLOAT32)


def norm_inputs(gated, dtype=torch.float32, **sizes):
    arguments = ss2d_inputs(dtype=dtype, device=DEVICE, **sizes)
    channels = arguments['x'].shape[-1]
    arguments['norm_weight'] = torch.rand(channels, device=DEVICE) + 0.5
    arguments['norm_bias'] = torch.randn(channels, device=DEVICE)
    if gated:
        arguments['gate'] = torch.randn(arguments['x'].shape, device=DEVICE).to(dtype)
    return arguments


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('gated', [False, True], ids=['plain', 'gated'])
def test_norm(gated, dtype):
    check_like_input(ss2d_norm, norm_inputs(gated, dtype), TOLERANCES[dtype])


@pytest.mark.parametrize(
    'sizes', [dict(batch=0), dict(batch=1, height=1, width=1), dict(channels=5, height=3)], ids=['batch0', 'one', 'odd']
)
def test_norm_shapes(sizes):
    check_like_input(ss2d_norm, norm_inputs(True, **sizes), 2 * FLOAT32)


def test_inference_keeps_no_sum_of_the_routes():
    """As large as the result, it serves the backward pass alone."""
    arguments = norm_inputs(True, batch=1, height=3, width=4)
    expected = ss2d_norm(**{k: v.requires_grad_() for k, v in arguments.items()}, backend='triton')
    with torch.no_grad():
        assert torch.equal(ss2d_norm(**arguments, backend='triton'), expected)
    y, total = torch.ops.mmvmamba.ss2d_norm(*(v.detach() for v in arguments.values()), 1e-5, 'cross', False, 'triton')
    assert torch.equal(y, expected)
    assert total.numel() == 0
    y, _ = torch.ops.mmvmamba.ss2d_norm(*arguments.values(), 1e-5, 'cross', False, 'triton')
    with pytest.raises(RuntimeError, match='trains=False'):
        y.sum().backward()


def test_norm_of_a_cascade():
    check_like_input(ss2d_norm, norm_inputs(True, batch=1), FLOAT32, routes='cascade')


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    'shape',
    [(2, 5, 7, 8), (1, 1, 9, 3), (1, 9, 1, 70), (0, 4, 4, 8), (1, 4, 4, 64), (1, 11, 13, 4)],
    ids=['primes', 'one_row', 'one_column', 'batch0', 'two_channels_a_lane', 'three_runs'],
)
def test_depthwise_convolution(shape, dtype):
    channels = shape[-1]
    arguments = dict(
        x=torch.randn(shape, device=DEVICE).to(dtype),
        weight=torch.randn(channels, 1, 3, 3, device=DEVICE) / 3,
        bias=torch.randn(channels, device=DEVICE),
    )
    check_like_input(depthwise_conv_silu, arguments, TOLERANCES[dtype])


@pytest.mark.parametrize('size', [1, 5])
def test_depthwise_convolution_without_bias(size):
    arguments = dict(
        x=torch.randn(2, 6, 5, 4, device=DEVICE), weight=torch.randn(4, 1, size, size, device=DEVICE), bias=None
    )
    check_like_input(depthwise_conv_silu, arguments, FLOAT32)


@pytest.mark.parametrize('gated', [False, True], ids=['plain', 'gated'])
def test_custom_operators(gated):
    arguments = {k: v.requires_grad_() for k, v in norm_inputs(gated, batch=1, height=3, width=4).items()}
    scan = [arguments[k] for k in ('x', 'x_proj_weight', 'dt_projs_weight', 'dt_projs_bias', 'As', 'Ds')]
    norm = [*scan, arguments['norm_weight'], arguments['norm_bias'], arguments.get('gate')]
    torch.library.opcheck(torch.ops.mmvmamba.ss2d.default, (*scan, 'cross', 'triton'))
    torch.library.opcheck(torch.ops.mmvmamba.ss2d_norm.default, (*norm, 1e-5, 'cross', True, 'triton'))
    frozen = [None if t is None else t.detach() for t in norm]
    torch.library.opcheck(torch.ops.mmvmamba.ss2d_norm.default, (*frozen, 1e-5, 'cross', False, 'triton'))
    weight = torch.randn(8, 1, 3, 3, device=DEVICE, requires_grad=True)
    bias = torch.randn(8, device=DEVICE, requires_grad=True) if gated else None
    torch.library.opcheck(torch.ops.mmvmamba.depthwise_conv_silu.default, (scan[0], weight, bias, 'triton'))
    sequence = [v.requires_grad_() for v in scan_inputs(1, 2, 3, length=5, device=DEVICE).values()]
    if not gated:
        sequence[-2:] = [None, None]
    torch.library.opcheck(torch.ops.mmvmamba.selective_scan.default, (*sequence, True, 'triton'))


def test_runs_are_bit_identical(chunked):
    arguments = ss2d_inputs(batch=1, height=6, width=7, device=DEVICE)
    first, first_grads = output_and_gradients(ss2d, arguments, backend='triton')
    second, second_grads = output_and_gradients(ss2d, arguments, backend='triton')
    assert torch.equal(first, second)
    assert all(torch.equal(first_grads[k], second_grads[k]) for k in first_grads)


def strided(tensor):
    """The same values, every other element of a buffer apart, dimensions reversed in memory."""
    buffer = torch.full((*tensor.shape[::-1], 2), float('nan'), dtype=tensor.dtype, device=tensor.device)
    view = buffer[..., 0].permute(*range(tensor.ndim - 1, -1, -1))
    view.copy_(tensor)
    return view


@pytest.mark.parametrize('function', [ss2d_norm, selective_scan, depthwise_conv_silu], ids=lambda f: f.__name__)
def test_non_contiguous_input(function):
    """Every tensor at once, and the gradient that comes in."""
    if function is ss2d_norm:
        arguments = norm_inputs(True, batch=2, height=3, width=4)
    elif function is selective_scan:
        arguments = scan_inputs(batch=2, groups=2, channels=3, length=9, device=DEVICE)
    else:
        sizes = dict(x=(2, 4, 3, 5), weight=(5, 1, 3, 3), bias=(5,))
        arguments = {name: torch.randn(shape, device=DEVICE) for name, shape in sizes.items()}

    apart = {k: strided(v) for k, v in arguments.items()}
    assert not any(v.is_contiguous() for v in apart.values())

    def run(arguments, of):
        leaves = [v.requires_grad_() for v in arguments.values()]
        y = function(**arguments, backend='triton')
        return y, *torch.autograd.grad(y, leaves, of(torch.linspace(-1, 1, y.numel(), device=DEVICE).view_as(y)))

    for actual, expected in zip(run(apart, strided), run(arguments, torch.clone), strict=True):
        assert torch.equal(actual, expected)


def test_compiles_without_graph_break():
    def block(x, weight, **rest):
        x = depthwise_conv_silu(x, weight, backend='triton')
        return ss2d_norm(x, **rest, backend='triton')

    arguments = norm_inputs(True, batch=1, height=3, width=4)
    arguments['weight'] = torch.randn(8, 1, 3, 3, device=DEVICE)
    y, grads = output_and_gradients(torch.compile(block, fullgraph=True, backend='aot_eager'), arguments)
    expected, expected_grads = output_and_gradients(block, arguments)
    assert torch.equal(y, expected)
    for name in grads:
        assert_close(name, grads[name], expected_grads[name], 1e-6)


def test_auto_leaves_the_interpreter_alone(monkeypatch):
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    assert dispatch.choose('ss2d', 'auto', 'cpu') != 'triton'


def test_nothing_kept_depends_on_values():
    """What a first call leaves for the next one are plans: parameters changed in place count at once."""
    arguments = norm_inputs(True, batch=1, height=3, width=4)
    with torch.no_grad():
        ss2d_norm(**arguments, backend='triton')
        for value in arguments.values():
            value.mul_(0.5)
    check_like_input(ss2d_norm, arguments, FLOAT32)


def test_a_recording_launches_nothing_and_spoils_nothing():
    arguments = norm_inputs(True, batch=1, height=4, width=3)
    with torch.no_grad():
        with launch.recording() as launches:
            ss2d_norm(**arguments, backend='triton')
        with launch.recording(launching=True) as again:
            y = ss2d_norm(**arguments, backend='triton')
        assert torch.equal(y, ss2d_norm(**arguments, backend='triton'))
    assert [launch.variant() for launch in launches] == [launch.variant() for launch in again]
    assert [launch.variant()[1] for launch in launches][-1] == 'merge_norm'
    assert not any(launch.misaligned for launch in launches)
    check_like_input(ss2d_norm, arguments, FLOAT32)
