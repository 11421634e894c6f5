"""`pooled_scan` over several planes a place, and over the places that a mask has kept."""

import pytest
import torch
from mmvmamba.kernels import BackendUnavailableError, pooled_scan_kept
from mmvmamba.kernels.pooled_scan import kept, torch_blocked
from mmvmamba.kernels.pooled_scan.op import _kept_operator, _planes_operator
from mmvmamba.kernels.testing import TOLERANCE, assert_close, output_and_gradients
from mmvmamba.kernels.testing import pooled_scan_by_name as call
from mmvmamba.kernels.testing import pooled_scan_inputs as inputs

AXES = ['row', 'column']
POOLS = ['mean', 'max', None]
PLANES = ['inner', 'outer']


def _able(operator):
    return [name for name in ('cpu', 'torch') if operator.why_not(name, 'cpu') is None]


ON_CPU = _able(_planes_operator)
CASES = {
    'plain': dict(planes=(3,)),
    'one_plane': dict(planes=(1,)),
    'one_row': dict(height=1, width=5, planes=(4,)),
    'one_column': dict(height=5, width=1, planes=(2,)),
    'one_place': dict(height=1, width=1, planes=(6,)),
    'primes': dict(height=7, width=3, planes=(5,), states=5),
    'narrow': dict(height=2, width=2, planes=(2,), window=7),
    'compiled': dict(height=3, width=5, planes=(3,), channels=32, batch=2),
    'compiled_one_plane': dict(height=3, width=2, planes=(1,), channels=32, norm=False),
    'many': dict(height=2, width=3, planes=(64,), channels=16, batch=1),
    'batch0': dict(batch=0, planes=(3,)),
}


def exact(arguments):
    return {name: value.double() for name, value in arguments.items()}


def check(arguments, backend, **options):
    """Output and every gradient against the reference in float64, twice for the same bits."""
    y, grads = output_and_gradients(call, arguments, backend=backend, **options)
    again, _ = output_and_gradients(call, arguments, backend=backend, **options)
    expected, expected_grads = output_and_gradients(call, exact(arguments), backend='reference', **options)
    assert_close('y', y, expected, TOLERANCE[torch.float32])
    assert torch.equal(y, again)
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name], TOLERANCE[torch.float32])


@pytest.mark.parametrize('backend', ON_CPU)
@pytest.mark.parametrize('planes', PLANES)
@pytest.mark.parametrize('pool', POOLS)
@pytest.mark.parametrize('axis', AXES)
@pytest.mark.parametrize('case', CASES)
def test_planes_match_reference(case, axis, pool, planes, backend):
    check(inputs(**CASES[case]), backend, axis=axis, pool=pool, planes=planes)


@pytest.mark.parametrize('pool', POOLS)
@pytest.mark.parametrize('planes', PLANES)
def test_planes_written_out(planes, pool):
    """The reference against grids without planes: inner ones are read in Python, outer ones are more lines."""
    arguments = inputs(height=3, width=4, planes=(2,), dtype=torch.float64)
    y = call(**arguments, pool=pool, planes=planes, backend='reference')
    if planes == 'outer':
        lines = dict(arguments, xz=arguments['xz'].movedim(3, 1).flatten(1, 2))
        expected = call(**lines, pool=pool, backend='reference').unflatten(1, (2, 3)).movedim(1, 3)
    elif pool is None:
        lines = dict(arguments, xz=arguments['xz'].flatten(2, 3))
        expected = call(**lines, pool=None, backend='reference').unflatten(2, (4, 2))
    else:
        # with a window of one and no steps the planes do not meet but in the scan; the order there is (row, plane)
        arguments = inputs(height=3, width=4, planes=(2,), window=1, dtype=torch.float64)
        y = call(**arguments, pool=pool, backend='reference')
        pooled = [[arguments['xz'][:, r, :, k] for k in range(2)] for r in range(3)]
        lines = torch.stack([place for row in pooled for place in row], dim=1)  # (B, rows * planes, W, 2D)
        expected = call(**dict(arguments, xz=lines), pool=pool, backend='reference').unflatten(1, (3, 2)).movedim(2, 3)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('planes', PLANES)
@pytest.mark.parametrize('axis', AXES)
def test_gradcheck_of_planes(axis, planes):
    arguments = inputs(1, 2, 3, 2, states=1, rank=1, planes=(2,), dtype=torch.float64)
    leaves = {name: value.requires_grad_() for name, value in arguments.items()}

    def function(*values):
        return call(**dict(zip(leaves, values, strict=True)), axis=axis, planes=planes, backend='torch')

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))


@pytest.mark.parametrize('backend', ON_CPU)
def test_strided_planes_are_not_copied_wrongly(backend):
    arguments = inputs(planes=(3,), channels=32)
    expected = call(**arguments, axis='column', backend=backend)
    first = arguments['xz'].movedim(3, 1).contiguous().movedim(1, 3)
    assert not first.is_contiguous()
    assert_close('y', call(**dict(arguments, xz=first), axis='column', backend=backend), expected, 1e-6)


def test_triton_refuses_kept_tokens_in_words():
    arguments = inputs()
    arguments['xz'] = arguments['xz'].flatten(1, 2)[:, :6]
    with pytest.raises(BackendUnavailableError, match='has no triton implementation in this version'):
        call(**arguments, kept=(_places(2, 6, 5, 7), (5, 7)), backend='triton')


@pytest.mark.parametrize('backend', ON_CPU)
def test_planes_as_operator(backend):
    tensors = [value.requires_grad_() for value in inputs(1, 3, 2, planes=(2,)).values()]
    options = ('column', 'mean', 1.0, 1e-5, 'inner', backend)
    torch.library.opcheck(torch.ops.mmvmamba.pooled_scan_planes.default, (*tensors, *options))


def _places(batch, count, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(height * width, generator=generator)[:count] for _ in range(batch)]
    return torch.stack(rows).sort(dim=1).values if batch else torch.zeros(0, count, dtype=torch.int64)


KEPT = {
    'quarter': dict(count=9, height=6, width=6),
    'one': dict(count=1, height=4, width=3),
    'wide': dict(count=7, height=2, width=9),
    'all': dict(count=35, height=5, width=7),
    'one_row': dict(count=3, height=1, width=7),
    'batch0': dict(count=5, height=3, width=4, batch=0),
}


def kept_inputs(count, height, width, batch=2, **options):
    arguments = inputs(batch, 1, count, **options)
    return dict(arguments, xz=arguments['xz'][:, 0]), (_places(batch, count, height, width), (height, width))


@pytest.mark.parametrize('backend', _able(_kept_operator))
@pytest.mark.parametrize('consistent', [False, True], ids=['published', 'consistent'])
@pytest.mark.parametrize('axis', AXES)
@pytest.mark.parametrize('case', KEPT)
def test_kept_matches_reference(case, axis, consistent, backend):
    arguments, places = kept_inputs(**KEPT[case])
    check(arguments, backend, axis=axis, consistent=consistent, kept=places, scaling=0.5)


@pytest.mark.parametrize('consistent', [False, True], ids=['published', 'consistent'])
@pytest.mark.parametrize('axis', AXES)
def test_all_kept_is_the_plain_operator(axis, consistent):
    arguments, places = kept_inputs(**KEPT['all'], dtype=torch.float64)
    options = dict(axis=axis, backend='reference')
    y = call(**arguments, kept=places, consistent=consistent, **options)
    plain = call(**dict(arguments, xz=arguments['xz'].unflatten(1, (5, 7))), **options)
    torch.testing.assert_close(y, plain.flatten(1, 2), rtol=0, atol=1e-12)


def test_consistent_rule_is_that_of_zeros_in_removed_places():
    """Without a convolution to tell neighbours apart, removed tokens are zeros: of a pooled row they are no part."""
    arguments, (places, grid) = kept_inputs(count=9, height=4, width=5, window=1, dtype=torch.float64)
    for way in ('forth', 'back'):
        arguments[f'{way}_conv_bias'] = torch.zeros_like(arguments[f'{way}_conv_bias'])
    whole = arguments['xz'].new_zeros(2, 20, 16).scatter(1, places[..., None].expand(-1, -1, 16), arguments['xz'])
    for axis in AXES:
        y = call(**arguments, kept=(places, grid), axis=axis, consistent=True, backend='reference')
        plain = call(**dict(arguments, xz=whole.unflatten(1, grid)), axis=axis, backend='reference').flatten(1, 2)
        torch.testing.assert_close(y, plain.gather(1, places[..., None].expand(-1, -1, 8)), rtol=0, atol=1e-12)
        published = call(**arguments, kept=(places, grid), axis=axis, backend='reference')
        assert (published - y).abs().max() > 1e-3


@pytest.mark.parametrize('backend', ['reference', *_able(_kept_operator)])
def test_order_of_kept_tokens_does_not_matter(backend):
    arguments, (places, grid) = kept_inputs(count=9, height=4, width=5)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    y = call(**arguments, kept=(places, grid), backend=backend)
    shuffled = call(**dict(arguments, xz=arguments['xz'][:, order]), kept=(places[:, order], grid), backend=backend)
    torch.testing.assert_close(shuffled, y[:, order], rtol=0, atol=1e-6)


def test_gradcheck_of_kept():
    arguments, places = kept_inputs(count=4, height=3, width=3, channels=2, states=1, rank=1, dtype=torch.float64)
    leaves = {name: value.requires_grad_() for name, value in arguments.items()}

    def function(*values):
        return call(**dict(zip(leaves, values, strict=True)), axis='column', kept=places, backend='torch')

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))


@pytest.mark.parametrize('backend', _able(_kept_operator))
def test_kept_as_operator(backend):
    arguments, (places, grid) = kept_inputs(count=4, height=3, width=3)
    xz, *tensors = (value.requires_grad_() for value in arguments.values())
    options = (*grid, 'column', 1.0, 1e-5, False, backend)
    torch.library.opcheck(torch.ops.mmvmamba.pooled_scan_kept.default, (xz, places, *tensors, *options))


def test_batches_of_kept_are_cut_into_blocks(monkeypatch):
    arguments, places = kept_inputs(count=9, height=4, width=5, batch=3)
    whole, whole_grads = output_and_gradients(call, arguments, kept=places, backend='torch')
    monkeypatch.setattr(kept, 'blocks', lambda batch, *_: [slice(0, 2), slice(2, 3)])
    y, grads = output_and_gradients(call, arguments, kept=places, backend='torch')
    assert_close('y', y, whole, 1e-6)
    for name, grad in grads.items():
        assert_close(name, grad, whole_grads[name], 2e-6)


def test_half_precision_of_planes_and_kept():
    for options, arguments in (
        ({}, inputs(planes=(3,), dtype=torch.bfloat16)),
        (dict(kept=(_places(2, 7, 5, 7), (5, 7))), inputs(2, 1, 7, dtype=torch.bfloat16)),
    ):
        if options:
            arguments['xz'] = arguments['xz'][:, 0]
        for backend in ON_CPU:
            y = call(**arguments, **options, backend=backend)
            assert y.dtype == torch.bfloat16
            assert_close('y', y, call(**exact(arguments), **options, backend='reference'), TOLERANCE[torch.bfloat16])


def test_a_line_of_the_scan_is_a_line_and_a_plane(monkeypatch):
    lengths = []
    original = torch_blocked.VECTORISED

    def counting(u, *arguments):
        lengths.append(u.shape[1])
        return original.forward(u, *arguments)

    monkeypatch.setattr(torch_blocked, 'VECTORISED', original._replace(forward=counting))
    for planes in PLANES:
        for axis in AXES:
            call(**inputs(height=5, width=7, planes=(3,)), axis=axis, planes=planes, backend='torch')
    assert lengths == [15, 15, 21, 21] * 2


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        (dict(planes='middle'), ValueError, r"planes='middle' is unknown; expected one of \['inner', 'outer'\]"),
        (dict(xz=torch.zeros(1, 2, 3, 0, 16)), ValueError, r'expected \(B, H, W, K, 2D\), of which only the batch'),
        (dict(xz=torch.zeros(1, 1, 2, 3, 4, 16)), ValueError, r'expected \(B, H, W, 2D\) or \(B, H, W, K, 2D\)'),
    ],
)
def test_bad_planes(change, error, words):
    with pytest.raises(error, match=words):
        call(**dict(inputs(), **change))


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        (dict(places=torch.zeros(2, 4)), TypeError, r'places must be a tensor \(B, M\) of int64, got torch.float32'),
        (dict(places=torch.zeros(2, 5, dtype=torch.int64)), ValueError, r'places has shape \(2, 5\) on cpu; expected'),
        (dict(grid=(3, 0)), ValueError, r'grid=\(3, 0\); expected \(H, W\)'),
        (dict(grid=(1, 3)), ValueError, 'xz has 4 tokens an image, more than the 1 x 3 of grid'),
        (dict(xz=torch.zeros(2, 4)), ValueError, r'expected \(B, M, 2D\)'),
    ],
)
def test_bad_kept(change, error, words):
    arguments, (places, grid) = kept_inputs(count=4, height=3, width=3)
    given = dict(dict(places=places, grid=grid), **change)
    arguments['xz'] = given.pop('xz', arguments['xz'])
    with pytest.raises(error, match=words):
        call(**arguments, kept=tuple(given.values()))


def test_kept_is_public():
    assert pooled_scan_kept.__doc__
