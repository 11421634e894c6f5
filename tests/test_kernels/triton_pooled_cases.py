"""Tests of the pooled scan's Triton backend, collected as `triton_cases.py` is."""

import pytest
import torch
from golden_runs import CHANNEL_VIMS, CLASSIFIERS, FASTVIMS, check_backbone, check_channel_vim, check_classifier
from mmvmamba.kernels import dispatch
from mmvmamba.kernels.pooled_scan import torch_blocked
from mmvmamba.kernels.testing import (
    assert_close,
    output_and_gradients,
    pooled_scan_by_name,
    pooled_scan_inputs,
)
from triton_runs import DEVICE, FLOAT32, INTERPRETED, LOGITS, MARKS, OLDEST_TRITON, TOLERANCES

pytest.importorskip('triton', minversion=OLDEST_TRITON)

from mmvmamba.kernels.pooled_scan import triton_gate, triton_gate_bwd, triton_pool_bwd
from mmvmamba.kernels.pooled_scan.triton_lines import Lines
from mmvmamba.kernels.shared_triton import launch, numerics

AXES = ['row', 'column']
POOLS = ['mean', 'max', None]

PLANES = {
    'inner': ((1, 2, 9), dict(dtype=torch.bfloat16), {}),
    'inner_columns_maxima': ((2, 2, 2), dict(batch=2, norm=False), dict(axis='column', pool='max')),
    'outer': ((2, 3, 3), dict(dtype=torch.float16), dict(axis='column', planes='outer')),
    'outer_short_lines_maxima': ((3, 1, 2), {}, dict(pool='max', planes='outer')),
    'inner_tokens': ((2, 3, 2), {}, dict(axis='column', pool=None)),
}
"""Names to H, W and K, other sizes, options."""

pytestmark = MARKS


@pytest.fixture(autouse=True)
def few_operations(request, monkeypatch):
    """The interpreter pays for programs and tiles rather than for numbers; `as_on_a_gpu` is for the sizes there."""
    launch.forget()  # plans that other sizes went into
    if INTERPRETED and 'as_on_a_gpu' not in request.node.name:
        monkeypatch.setattr(numerics, 'PROGRAMS_OF_RUNS', 4)
        monkeypatch.setattr(triton_gate, 'U', 16)
        monkeypatch.setattr(triton_gate_bwd, 'U', 16)
        monkeypatch.setattr(triton_pool_bwd, 'tiling', lambda size, pool: dict(BD=32, U=16))


def inputs(**sizes):
    return pooled_scan_inputs(device=DEVICE, **sizes)


def check(arguments, tolerance=FLOAT32, **options):
    """Output and every gradient against the reference in float64, on the same rounded inputs."""
    y, grads = output_and_gradients(pooled_scan_by_name, arguments, backend='triton', **options)
    exact = {name: value.double() for name, value in arguments.items()}
    expected, expected_grads = output_and_gradients(pooled_scan_by_name, exact, backend='reference', **options)
    assert y.dtype == arguments['xz'].dtype
    assert_close('y', y, expected, tolerance)
    half = arguments['xz'].dtype != torch.float32
    for name, grad in grads.items():
        assert grad.dtype == arguments[name].dtype
        assert_close(name, grad, expected_grads[name], 2 * tolerance if half else tolerance)
    return y, grads


GRIDS = {
    'one_row': dict(height=1, width=23),
    'one_column': dict(height=23, width=1),
    'one_token': dict(height=1, width=1),
    'square': dict(height=14, width=14),
    'odd': dict(height=3, width=18, channels=5),
}


@pytest.mark.parametrize('pool', POOLS)
@pytest.mark.parametrize('axis', AXES)
def test_axes_and_pools(axis, pool):
    check(inputs(), axis=axis, pool=pool)


@pytest.mark.parametrize('pool', ['mean', 'max'])
@pytest.mark.parametrize('case', GRIDS)
def test_grids(case, pool):
    check(
        inputs(**dict(dict(batch=1, channels=4), **GRIDS[case])), axis='column' if pool == 'max' else 'row', pool=pool
    )


@pytest.mark.parametrize('pool', POOLS)
def test_tiles_as_on_a_gpu(pool):
    check(inputs(batch=1, height=3, width=6, channels=6), pool=pool)


@pytest.mark.parametrize(
    ('height', 'width', 'axis'),
    [(37, 19, 'column'), (24, 40, 'row')] if INTERPRETED else [(37, 61, 'column'), (64, 64, 'row')],
)
def test_large_grids(height, width, axis):
    check(inputs(batch=1, height=height, width=width, states=1, rank=1), axis=axis)


SIZES = {
    'n16': dict(states=16, channels=4, height=3, width=5),
    'wide_rank': dict(rank=24, channels=6, height=3, width=4),
    'rank_too_wide_for_the_scan': dict(rank=49, channels=6, height=3, width=4),
    'two_blocks': dict(channels=67, height=3, width=3),
    'window_of_one': dict(window=1, height=3, width=4),
    'window_of_seven': dict(window=7, height=2, width=3),
    'window_beyond_a_tile': dict(window=11, height=4, width=3, channels=2),
}


@pytest.mark.parametrize('case', SIZES)
def test_sizes(case):
    check(inputs(batch=1, **SIZES[case]))


@pytest.mark.parametrize('pool', POOLS)
def test_no_norm(pool):
    check(inputs(batch=1, norm=False), axis='column', pool=pool)


@pytest.mark.parametrize('pool', POOLS)
def test_no_images(pool):
    check(inputs(batch=0), pool=pool)


@pytest.mark.parametrize('pool', ['mean', 'max'])
def test_scaling(pool):
    check(inputs(batch=1, height=4), pool=pool, scaling=0.25)


@pytest.mark.parametrize('pool', POOLS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype, pool):
    check(inputs(batch=1, height=3, dtype=dtype), TOLERANCES[dtype], pool=pool)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_parameters(dtype):
    check(inputs(batch=1, height=3, dtype=dtype, parameter=dtype), TOLERANCES[dtype], axis='column')


def test_ties_share_the_gradient():
    """Equal tokens, so that every token of a line is its maximum in the direction that no end disturbs."""
    arguments = inputs(batch=1, height=3, width=18, channels=4, window=1)
    arguments['xz'] = arguments['xz'][:, :, :1].repeat(1, 1, 18, 1)
    arguments['xz'][0, 1, 7] -= 1  # one that is none or the only one
    check(arguments, pool='max')


@pytest.mark.parametrize('axis', AXES)
def test_large_inputs_stay_finite(axis):
    arguments = inputs(batch=1, height=3, width=4, channels=4)
    arguments['xz'] = 100 * arguments['xz']
    check(arguments, axis=axis)


def test_a_zeroed_gradient_would_be_noticed():
    _, grads = check(inputs(batch=1, height=3, width=4))
    for name, grad in grads.items():
        with pytest.raises(AssertionError, match='relative error'):
            assert_close(name, torch.zeros_like(grad), grad, FLOAT32)


@pytest.mark.parametrize('pool', POOLS)
def test_runs_are_bit_identical(pool):
    arguments = inputs(batch=1, height=3, width=4, channels=4)
    first, first_grads = output_and_gradients(pooled_scan_by_name, arguments, pool=pool, backend='triton')
    second, second_grads = output_and_gradients(pooled_scan_by_name, arguments, pool=pool, backend='triton')
    assert torch.equal(first, second)
    assert all(torch.equal(first_grads[name], second_grads[name]) for name in first_grads)


def test_many_programs(monkeypatch):
    monkeypatch.setattr(numerics, 'PROGRAMS_OF_RUNS', 1 << 20)
    monkeypatch.setattr(triton_gate, 'SHORTEST_RUN', 8)
    check(inputs(batch=1, height=4, width=5, channels=4))


def test_non_contiguous_tensors():
    arguments = inputs(batch=1, height=4)
    strided = {name: value.T.contiguous().T if value.ndim == 2 else value for name, value in arguments.items()}
    strided['xz'] = arguments['xz'].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not strided['xz'].is_contiguous()
    y, grads = check(strided, axis='column')
    expected, expected_grads = check(arguments, axis='column')
    assert torch.equal(y, expected)
    assert all(torch.equal(grads[name], expected_grads[name]) for name in grads)


@pytest.mark.parametrize('case', PLANES)
def test_planes(case):
    (height, width, planes), sizes, options = PLANES[case]
    arguments = inputs(**dict(dict(batch=1, channels=4, height=height, width=width, planes=(planes,)), **sizes))
    check(arguments, TOLERANCES[arguments['xz'].dtype], **options)


@pytest.mark.parametrize('planes', ['inner', 'outer'])
@pytest.mark.parametrize('pool', ['mean', None])
@pytest.mark.parametrize('axis', AXES)
def test_lines_follow_the_sequence(axis, pool, planes):
    """Every token's pixel, by the numbers that kernels get, and the pooled line that it is on."""
    height, width, count = 3, 4, 5
    lines = Lines.of((1, height, width, count, 2), axis, pool, planes)
    pixels = torch.arange(height * width * count).view(1, height, width, count, 1)
    order = torch_blocked._grid(pixels, axis, planes)
    t = torch.arange(lines.tokens)
    line, place = t // lines.size, t % lines.size
    group = line // (lines.group or lines.lines)
    among = line - group * (lines.group or lines.lines)
    found = group * (lines.group_step or 0) + among * lines.line_step + place * lines.step
    assert torch.equal(found, order.flatten())
    if pool:
        of_line = group * lines.size + place if lines.interleaved else line
        axes = order[0, ..., 0].shape
        pooled = torch.arange(lines.pooled[0]).view(axes[:1] + axes[2:] if planes == 'inner' else axes[:2])
        assert torch.equal(of_line, pooled.unsqueeze(1 if planes == 'inner' else 2).expand(axes).flatten())
        assert lines.pooled == (
            lines.tokens // (width if axis == 'row' else height),
            width if axis == 'row' else height,
        )


@pytest.mark.parametrize('planes', ['inner', 'outer'])
def test_one_plane_is_a_grid_without(planes):
    """The same launches: nothing is paid for what is not there."""
    arguments = inputs(batch=1, height=2, width=3, channels=4)
    alone = dict(arguments, xz=arguments['xz'][:, :, :, None])
    with launch.recording() as without:
        pooled_scan_by_name(**arguments, backend='triton')
    with launch.recording() as one:
        pooled_scan_by_name(**alone, planes=planes, backend='triton')
    assert [each.variant() for each in one] == [each.variant() for each in without]


def test_directions_of_different_sizes_are_refused():
    arguments = dict(inputs(), back_conv_weight=torch.zeros(8, 1, 3, device=DEVICE))
    with pytest.raises(ValueError, match=r'forth.conv_weight has shape \(8, 1, 4\) and back.conv_weight \(8, 1, 3\)'):
        pooled_scan_by_name(**arguments, backend='triton')


@pytest.mark.parametrize(('norm', 'pool'), [(True, 'max'), (False, None)])
def test_custom_operator(norm, pool):
    tensors = [value.requires_grad_() for value in inputs(batch=1, height=3, width=2, norm=norm).values()]
    if not norm:
        tensors += [None, None]
    torch.library.opcheck(torch.ops.mmvmamba.pooled_scan.default, (*tensors, 'column', pool, 1.0, 1e-5, 'triton'))


def test_compiles_without_graph_break():
    arguments = inputs(batch=1, height=3, width=4)
    compiled = torch.compile(pooled_scan_by_name, fullgraph=True, backend='aot_eager')
    y, grads = output_and_gradients(compiled, arguments, backend='triton')
    expected, expected_grads = output_and_gradients(pooled_scan_by_name, arguments, backend='triton')
    assert torch.equal(y, expected)
    assert all(torch.equal(grads[name], expected_grads[name]) for name in grads)


def test_autocast_does_not_reach_inside():
    arguments = inputs(batch=1, height=3, width=4, dtype=torch.bfloat16)

    def under_autocast(**leaves):
        with torch.autocast(DEVICE, torch.bfloat16):
            return pooled_scan_by_name(**leaves, backend='triton')

    y, grads = output_and_gradients(under_autocast, arguments)
    expected, expected_grads = output_and_gradients(pooled_scan_by_name, arguments, backend='triton')
    assert torch.equal(y, expected)
    assert all(torch.equal(grads[name], expected_grads[name]) for name in grads)


def test_auto_leaves_the_interpreter_alone(monkeypatch):
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    assert dispatch.choose('pooled_scan', 'auto', 'cpu') != 'triton'


# the interpreter takes a minute and more for some
@pytest.mark.parametrize('name', ('fastvim_max_pool',) if INTERPRETED else FASTVIMS)
def test_golden_backbone(name, data_dir):
    with torch.backends.cudnn.flags(allow_tf32=False):
        check_backbone(data_dir / f'{name}.safetensors', 'triton', FLOAT32, FLOAT32, DEVICE)


@pytest.mark.skipif(INTERPRETED, reason='takes the interpreter 30 to 180 s')
@pytest.mark.parametrize('name', CHANNEL_VIMS)
def test_golden_channel_vim(name, data_dir):
    check_channel_vim(data_dir / f'{name}.safetensors', 'triton', LOGITS, FLOAT32, DEVICE)


@pytest.mark.parametrize('name', ('cls_vim',) if INTERPRETED else [n for n in CLASSIFIERS if n != 'cls_vmamba'])
def test_golden_classifier(name, data_dir):
    pytest.importorskip('mmpretrain')
    check_classifier(data_dir / f'{name}.safetensors', 'triton', LOGITS, FLOAT32, DEVICE)
