"""`ss2d` and `ss2d_norm`: every backend and route pattern against the reference, the routes against golden walks."""

import pytest
import torch
from mmvmamba.kernels import ss2d, ss2d_norm
from mmvmamba.kernels.ss2d.routes import PATTERNS, ROUTES, grid, sequence
from mmvmamba.kernels.testing import TOLERANCE, assert_close, load_golden, output_and_gradients, ss2d_inputs
from torch.nn import functional as F

CASES = {
    'n1': dict(),
    'n2': dict(states=2),
    'n16': dict(states=16, channels=4, height=3, width=5),
    'one_row': dict(height=1, width=19),
    'one_column': dict(height=19, width=1),
    'one_pixel': dict(height=1, width=1),
    'primes': dict(height=11, width=7, channels=5),
    'square': dict(height=8, width=8, channels=16),
    'wide_rank': dict(rank=24, channels=6, height=3, width=4),
    'batch0': dict(batch=0),
    'batch1': dict(batch=1, height=17, width=16),
}


@pytest.mark.parametrize('pattern', ['cross', 'unidi', 'bidi'])
def test_routes_walk_like_the_published_ones(pattern, data_dir):
    golden, _ = load_golden(data_dir / 'cross_scan.safetensors')
    key = {'cross': 'cross2d'}.get(pattern, pattern)
    channels_last = golden['x'].permute(0, 2, 3, 1)  # (B, H, W, D)
    height, width = channels_last.shape[1:3]
    merged = torch.zeros_like(channels_last)
    for k, route in enumerate(ROUTES[pattern]):
        walk = sequence(channels_last, route.by_column)
        walk = walk.flip(1) if route.reverse else walk
        assert torch.equal(walk.transpose(1, 2), golden[f'scan.{key}'][:, k])
        merged += grid(walk.flip(1) if route.reverse else walk, route.by_column, height, width)
    assert torch.equal(merged.permute(0, 3, 1, 2), 4 * golden['x'])


@pytest.mark.parametrize('routes', PATTERNS)
@pytest.mark.parametrize('case', CASES)
def test_matches_reference(case, routes, backend):
    arguments = ss2d_inputs(**CASES[case])
    y, grads = output_and_gradients(ss2d, arguments, routes=routes, backend=backend)
    exact = {k: v.double() for k, v in arguments.items()}
    expected, expected_grads = output_and_gradients(ss2d, exact, routes=routes, backend='reference')
    assert y.dtype == torch.float32
    # the cascade normalises twice: rounding is amplified where a pixel's channels nearly agree
    tolerance = TOLERANCE[torch.float32] * (10 if routes == 'cascade' else 1)
    assert_close('y', y, expected, tolerance)
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], tolerance)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('routes', ['cross', 'cascade'])
def test_half_precision_in_float32_out(dtype, routes, backend):
    arguments = ss2d_inputs(dtype=dtype)
    y, grads = output_and_gradients(ss2d, arguments, routes=routes, backend=backend)
    exact = {k: v.double() for k, v in arguments.items()}
    expected, expected_grads = output_and_gradients(ss2d, exact, routes=routes, backend='reference')
    assert y.dtype == torch.float32
    assert_close('y', y, expected, TOLERANCE[dtype])
    for name, grad in grads.items():
        assert grad.dtype == arguments[name].dtype
        assert_close(name, grad, expected_grads[name], TOLERANCE[dtype])


@pytest.mark.parametrize('routes', PATTERNS)
def test_gradcheck(routes):
    arguments = {
        k: v.requires_grad_() for k, v in ss2d_inputs(1, 2, 3, 4, states=2, rank=2, dtype=torch.float64).items()
    }
    for backend in ('reference', 'torch'):
        assert torch.autograd.gradcheck(
            lambda *t, backend=backend: ss2d(*t, routes=routes, backend=backend), tuple(arguments.values())
        )


def test_transposing_the_image_swaps_rows_and_columns(backend_or_reference):
    """Of a symmetric set of parameters the cross scan cannot tell rows from columns."""
    arguments = ss2d_inputs(height=4, width=6)
    swapped = {
        name: t
        if name == 'x'
        else t.unflatten(0, (4, -1))[[1, 0, 3, 2]].flatten(0, 1)
        if name in ('As', 'Ds')
        else t[[1, 0, 3, 2]]
        for name, t in arguments.items()
    }
    y = ss2d(**arguments, backend=backend_or_reference)
    swapped['x'] = arguments['x'].transpose(1, 2)
    assert_close('y', ss2d(**swapped, backend=backend_or_reference).transpose(1, 2), y, 1e-6)


def test_non_contiguous_input(backend):
    arguments = ss2d_inputs(height=6, width=9)
    strided = dict(arguments, x=arguments['x'].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))
    assert not strided['x'].is_contiguous()
    y, grads = output_and_gradients(ss2d, strided, backend=backend)
    expected, expected_grads = output_and_gradients(ss2d, arguments, backend=backend)
    assert_close('y', y, expected, 1e-6)
    assert_close('x', grads['x'], expected_grads['x'], 1e-6)


def test_runs_are_bit_identical(backend):
    arguments = ss2d_inputs(height=13, width=12)
    first, first_grads = output_and_gradients(ss2d, arguments, backend=backend)
    second, second_grads = output_and_gradients(ss2d, arguments, backend=backend)
    assert torch.equal(first, second)
    assert all(torch.equal(first_grads[k], second_grads[k]) for k in first_grads)


def test_custom_operator_registration(backend):
    arguments = {k: v.requires_grad_() for k, v in ss2d_inputs(1, 3, 2).items()}
    torch.library.opcheck(torch.ops.mmvmamba.ss2d.default, (*arguments.values(), 'cross', backend))


@pytest.mark.parametrize('routes', ['cross', 'cascade'])
def test_compiles_without_graph_break(routes, backend):
    arguments = ss2d_inputs(height=3, width=4)
    compiled = torch.compile(ss2d, fullgraph=True, backend='aot_eager')
    y, grads = output_and_gradients(compiled, arguments, routes=routes, backend=backend)
    expected, expected_grads = output_and_gradients(ss2d, arguments, routes=routes, backend=backend)
    assert_close('y', y, expected, 1e-6)
    for name in grads:
        assert_close(name, grads[name], expected_grads[name], 1e-5)


def test_autocast_does_not_reach_inside(backend_or_reference):
    arguments = ss2d_inputs(dtype=torch.bfloat16)

    def under_autocast(**leaves):
        with torch.autocast('cpu', torch.bfloat16):
            return ss2d(**leaves, backend=backend_or_reference)

    y, grads = output_and_gradients(under_autocast, arguments)
    expected, expected_grads = output_and_gradients(ss2d, arguments, backend=backend_or_reference)
    assert torch.equal(y, expected)
    assert all(torch.equal(grads[k], expected_grads[k]) for k in grads)


@pytest.mark.parametrize('gated', [False, True], ids=['plain', 'gated'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_norm_and_gate_follow_in_float32(dtype, gated, backend_or_reference):
    arguments = ss2d_inputs(dtype=dtype)
    channels = arguments['x'].shape[-1]
    arguments['norm_weight'] = torch.rand(channels) + 0.5
    arguments['norm_bias'] = torch.randn(channels)
    if gated:
        arguments['gate'] = torch.randn(arguments['x'].shape).to(dtype)
    y, grads = output_and_gradients(ss2d_norm, arguments, backend=backend_or_reference)

    def composed(norm_weight, norm_bias, gate=None, **scan):
        y = F.layer_norm(ss2d(**scan, backend='reference'), (channels,), norm_weight, norm_bias, 1e-5)
        return y if gate is None else y * F.silu(gate)

    exact = {k: v.double() for k, v in arguments.items()}
    expected, expected_grads = output_and_gradients(composed, exact)
    assert y.dtype == dtype
    assert_close('y', y, expected, TOLERANCE[dtype])
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], 2 * TOLERANCE[dtype])


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        (dict(x=torch.zeros(2, 5, 7)), ValueError, r'x has shape \(2, 5, 7\); expected \(B, H, W, D\)'),
        (dict(x=torch.zeros(2, 0, 7, 8)), ValueError, 'only the batch may be empty'),
        (dict(x=torch.zeros(2, 5, 7, 9)), ValueError, r'x_proj_weight has shape .* to fit x of shape \(2, 5, 7, 9\)'),
        (dict(x_proj_weight=torch.zeros(4, 4, 8)), ValueError, r'R \+ 2N'),
        (dict(dt_projs_bias=torch.zeros(32)), ValueError, r'dt_projs_bias has shape \(32,\)'),
        (dict(As=torch.zeros(8, 1)), ValueError, r'As has shape \(8, 1\)'),
        (dict(Ds=[1.0]), TypeError, 'Ds must be a tensor'),
        (
            dict(Ds=torch.zeros(32, dtype=torch.float16)),
            TypeError,
            'Ds has dtype torch.float16; expected torch.float32',
        ),
        (dict(routes='diagonal'), ValueError, "routes='diagonal' is unknown; expected one of"),
        (dict(routes='pair'), ValueError, "routes='pair' is unknown"),
    ],
)
def test_bad_input(change, error, words):
    with pytest.raises(error, match=words):
        ss2d(**dict(ss2d_inputs(), **change))
