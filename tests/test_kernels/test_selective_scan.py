"""`selective_scan`: every backend against golden tensors and against the reference."""

import pytest
import torch
from mmvmamba.kernels import selective_scan
from mmvmamba.kernels.testing import TOLERANCE, assert_close, load_golden, output_and_gradients, scan_inputs

GOLDEN_NAMES = {'u': 'u', 'delta': 'delta', 'A': 'A', 'Bs': 'B', 'Cs': 'C', 'Ds': 'D', 'delta_bias': 'delta_bias'}

CASES = {
    'n1': dict(),
    'n2': dict(states=2),
    'n16': dict(states=16, channels=4),
    'one_position': dict(length=1),
    'two_positions': dict(length=2),
    'prime': dict(length=37, channels=5),
    'square': dict(length=64),
    'square_plus_one': dict(length=65),
    'one_group': dict(groups=1),
    'batch0': dict(batch=0),
    'batch1_long': dict(batch=1, length=301, channels=3),
}


@pytest.mark.parametrize('name', ['scan_n1', 'scan_n16', 'scan_one_direction'])
def test_golden(name, backend_or_reference, data_dir):
    golden, _ = load_golden(data_dir / f'{name}.safetensors')
    leaves = {ours: golden[theirs].requires_grad_() for ours, theirs in GOLDEN_NAMES.items()}
    y = selective_scan(**leaves, backend=backend_or_reference)
    torch.testing.assert_close(y, golden['y'], rtol=0, atol=1e-5)
    grads = torch.autograd.grad(y, list(leaves.values()), golden['dy'])
    for ours, grad in zip(leaves, grads, strict=True):
        assert_close(ours, grad, golden[f'grad.{GOLDEN_NAMES[ours]}'], 1e-5)


@pytest.mark.parametrize('case', CASES)
def test_matches_reference(case, backend):
    arguments = scan_inputs(**CASES[case])
    y, grads = output_and_gradients(selective_scan, arguments, backend=backend)
    exact = {k: v.double() for k, v in arguments.items()}
    expected, expected_grads = output_and_gradients(selective_scan, exact, backend='reference')
    assert y.dtype == torch.float32
    assert_close('y', y, expected, TOLERANCE[torch.float32])
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], TOLERANCE[torch.float32])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_in_float32_out(dtype, backend):
    arguments = scan_inputs(dtype=dtype, states=2)
    y, grads = output_and_gradients(selective_scan, arguments, backend=backend)
    # the same rounded inputs in float64: only the arithmetic is compared, which must be float32 inside
    exact = {k: v.double() for k, v in arguments.items()}
    expected, expected_grads = output_and_gradients(selective_scan, exact, backend='reference')
    assert y.dtype == torch.float32
    assert_close('y', y, expected, 1e-5)
    for name, grad in grads.items():
        assert grad.dtype == arguments[name].dtype
        assert_close(name, grad, expected_grads[name], TOLERANCE[dtype])


@pytest.mark.parametrize('absent', [('Ds',), ('delta_bias',), ('Ds', 'delta_bias')], ids='+'.join)
def test_absent_arguments(absent, backend):
    arguments = dict(scan_inputs(), **dict.fromkeys(absent))
    y, grads = output_and_gradients(selective_scan, arguments, backend=backend)
    expected, expected_grads = output_and_gradients(selective_scan, arguments, backend='reference')
    assert_close('y', y, expected, 1e-5)
    assert grads.keys() == expected_grads.keys() == arguments.keys() - set(absent)
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], 1e-5)


def test_without_softplus(backend):
    arguments = scan_inputs()
    arguments['delta'] = arguments['delta'].abs() * 0.1
    arguments['delta_bias'] = arguments['delta_bias'].abs() * 0.1
    y, grads = output_and_gradients(selective_scan, arguments, backend=backend, softplus=False)
    expected, expected_grads = output_and_gradients(selective_scan, arguments, backend='reference', softplus=False)
    assert_close('y', y, expected, 1e-5)
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], 1e-5)


def test_extreme_steps_stay_finite_and_right(backend):
    """Softplus far on both sides: identity above its threshold, relative accuracy far below zero."""
    arguments = scan_inputs(length=23)
    arguments['delta'] = torch.linspace(-60, 90, 23).expand_as(arguments['delta']).contiguous()
    y, grads = output_and_gradients(selective_scan, arguments, backend=backend)
    exact = {k: v.double() for k, v in arguments.items()}
    expected, expected_grads = output_and_gradients(selective_scan, exact, backend='reference')
    assert_close('y', y, expected, 1e-5)
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], 1e-5)


def test_non_contiguous_inputs(backend):
    arguments = scan_inputs(length=17)
    strided = {
        name: torch.stack([t, t], dim=-1)[..., 0] if t.ndim < 3 else t.transpose(0, -1).contiguous().transpose(0, -1)
        for name, t in arguments.items()
    }
    assert not any(t.is_contiguous() for t in strided.values())
    y, _ = output_and_gradients(selective_scan, strided, backend=backend)
    expected, _ = output_and_gradients(selective_scan, arguments, backend=backend)
    assert_close('y', y, expected, 1e-6)


def test_expanded_cotangent(backend):
    """`y.sum().backward()` sends a gradient of stride zero."""
    arguments = {k: v.requires_grad_() for k, v in scan_inputs(length=9).items()}
    selective_scan(**arguments, backend=backend).sum().backward()
    grad = arguments['u'].grad.clone()
    arguments['u'].grad = None
    y = selective_scan(**arguments, backend='reference')
    y.backward(torch.ones_like(y))
    assert_close('u', grad, arguments['u'].grad, 1e-5)


def test_three_dimensional_bs_mean_one_group(backend_or_reference):
    arguments = scan_inputs(groups=1)
    squeezed = dict(arguments, Bs=arguments['Bs'][:, 0], Cs=arguments['Cs'][:, 0])
    y = selective_scan(**squeezed, backend=backend_or_reference)
    assert torch.equal(y, selective_scan(**arguments, backend=backend_or_reference))


def test_gradcheck_of_the_reference():
    arguments = {k: v.requires_grad_() for k, v in scan_inputs(1, 2, 2, 2, 5, dtype=torch.float64).items()}
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, backend='reference'), tuple(arguments.values()))


def test_gradcheck_of_the_blocked_scan():
    arguments = {k: v.requires_grad_() for k, v in scan_inputs(1, 2, 2, 2, 5, dtype=torch.float64).items()}
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, backend='torch'), tuple(arguments.values()))


@pytest.mark.parametrize('name', list(GOLDEN_NAMES))
def test_canary_a_zeroed_gradient_fails(name):
    """The comparison that the tests above rely on must notice a gradient that is missing."""
    _, grads = output_and_gradients(selective_scan, scan_inputs(), backend='reference')
    with pytest.raises(AssertionError, match=name):
        assert_close(name, torch.zeros_like(grads[name]), grads[name], TOLERANCE[torch.bfloat16])


def test_runs_are_bit_identical(backend):
    arguments = scan_inputs(length=129, states=2)
    first, first_grads = output_and_gradients(selective_scan, arguments, backend=backend)
    second, second_grads = output_and_gradients(selective_scan, arguments, backend=backend)
    assert torch.equal(first, second)
    assert all(torch.equal(first_grads[k], second_grads[k]) for k in first_grads)


def test_custom_operator_registration(backend):
    arguments = {k: v.requires_grad_() for k, v in scan_inputs(length=6).items()}
    torch.library.opcheck(torch.ops.mmvmamba.selective_scan.default, (*arguments.values(), True, backend))
    absent = dict(arguments, Ds=None, delta_bias=None)
    torch.library.opcheck(torch.ops.mmvmamba.selective_scan.default, (*absent.values(), True, backend))


def test_compiles_without_graph_break(backend):
    arguments = scan_inputs(length=6)
    compiled = torch.compile(selective_scan, fullgraph=True, backend='aot_eager')
    y, grads = output_and_gradients(compiled, arguments, backend=backend)
    expected, expected_grads = output_and_gradients(selective_scan, arguments, backend=backend)
    assert torch.equal(y, expected)
    assert all(torch.equal(grads[k], expected_grads[k]) for k in grads)


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        (dict(u=torch.zeros(2, 3)), ValueError, r'u has shape \(2, 3\); expected \(B, K\*D, L\)'),
        (dict(u=None), TypeError, 'u must be a tensor'),
        (dict(u=torch.zeros(2, 32, 33, dtype=torch.int64)), TypeError, 'u has dtype torch.int64'),
        (dict(u=torch.zeros(2, 32, 0)), ValueError, 'only the batch may be empty'),
        (dict(delta=torch.zeros(2, 32, 30)), ValueError, r'delta has shape \(2, 32, 30\).*= \(2, 32, 33\) to fit u'),
        (dict(delta=torch.zeros(2, 32, 33, dtype=torch.float16)), TypeError, 'delta has dtype torch.float16 but u has'),
        (dict(A=torch.zeros(31, 1)), ValueError, r'A has shape \(31, 1\)'),
        (
            dict(A=torch.zeros(32, 1, dtype=torch.float64)),
            TypeError,
            'A has dtype torch.float64; expected torch.float32 as u is torch.float32',
        ),
        (dict(Bs=torch.zeros(2, 5, 1, 33)), ValueError, 'K = 5 groups, which does not divide the 32 channels'),
        (dict(Cs=torch.zeros(2, 4, 2, 33)), ValueError, r'Cs has shape \(2, 4, 2, 33\)'),
        (dict(Ds=torch.zeros(8)), ValueError, r'Ds has shape \(8,\)'),
        (dict(delta_bias=torch.zeros(32, device='meta')), ValueError, 'delta_bias is on meta but u is on cpu'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_bad_input(change, error, words):
    with pytest.raises(error, match=words):
        selective_scan(**dict(scan_inputs(), **change))
