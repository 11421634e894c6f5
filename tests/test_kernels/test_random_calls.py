"""A thousand random operator calls: equal to the reference, or refused as the reference refuses them.

Shapes, dtypes, memory layouts, absent arguments; one call in four has an argument that may not fit. What lies between
the elements of a tensor is NaN, so reading past strides shows.
"""

import pytest
import torch
from mmvmamba.kernels import BackendUnavailableError, depthwise_conv_silu, selective_scan, ss2d, ss2d_norm
from mmvmamba.kernels.testing import (
    TOLERANCE,
    pooled_scan_by_name,
    pooled_scan_inputs,
    scan_inputs,
    ss2d_inputs,
)

hypothesis = pytest.importorskip('hypothesis')
st = hypothesis.strategies

DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)  # the usual one twice
LAYOUTS = ('plain', 'plain', 'reversed', 'strided', 'offset')
SPOILS = ('shape', 'dtype', 'ndim', 'type', 'device')
NAN = float('nan')


def calls(number):
    return hypothesis.settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def laid_out(t, layout):
    """The same values in memory of another shape."""
    if layout == 'reversed':
        axes = tuple(range(t.ndim))[::-1]
        return t.permute(axes).contiguous().permute(axes)
    if layout == 'strided':
        return torch.stack([t, torch.full_like(t, NAN)], -1)[..., 0]
    if layout == 'offset':
        return torch.cat([torch.full_like(t.flatten()[:1], NAN), t.flatten()])[-t.numel() :].view(t.shape)
    return t


def spoiled(draw, t, how):
    if how == 'shape':
        axis = draw(st.integers(0, t.ndim - 1))
        return t.narrow(axis, 0, t.shape[axis] - 1) if t.shape[axis] else t
    if how == 'dtype':
        return t.to(draw(st.sampled_from([torch.int64, torch.float64, torch.float32, torch.bfloat16, torch.complex64])))
    if how == 'ndim':
        return t[None] if draw(st.booleans()) else t[..., 0] if t.shape[-1] else t[None]
    if how == 'type':
        return draw(st.sampled_from([None, 1.0, 'u', [0.0]]))
    return t.to('meta')


def varied(draw, arguments, optional=()):
    """Random arguments made stranger: dtypes of parameters, layouts, absences, and now and then a misfit."""
    first = next(iter(arguments.values()))
    if first.dtype in (torch.bfloat16, torch.float16) and draw(st.booleans()):
        arguments = {name: t.to(first.dtype) for name, t in arguments.items()}
    for name in optional:
        if draw(st.booleans()):
            arguments[name] = None
    layouts = draw(st.lists(st.sampled_from(LAYOUTS), min_size=len(arguments), max_size=len(arguments)))
    for (name, t), layout in zip(list(arguments.items()), layouts, strict=True):
        arguments[name] = t if t is None else laid_out(t, layout)
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from([name for name, t in arguments.items() if t is not None]))
        arguments[name] = spoiled(draw, arguments[name], draw(st.sampled_from(SPOILS)))
    return arguments


def run(function, arguments, backend, double=False, **options):
    """Output and gradients by name, or the exception with which the call was refused."""
    leaves = {}
    for name, t in arguments.items():
        if isinstance(t, torch.Tensor) and t.is_floating_point() and t.device.type == 'cpu':
            t = (t.double() if double else t).detach().requires_grad_()
        leaves[name] = t
    try:
        y = function(**leaves, backend=backend, **options)
    except (TypeError, ValueError, BackendUnavailableError) as error:
        return error
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    wanted = {name: t for name, t in leaves.items() if isinstance(t, torch.Tensor)}
    gradients = torch.autograd.grad(y, list(wanted.values()), cotangent, allow_unused=True)
    return dict(y=y.detach(), **dict(zip(wanted, gradients, strict=True)))


def compare(name, function, arguments, backends, **options):
    reference = run(function, arguments, 'reference', **options)
    exact = None if isinstance(reference, Exception) else run(function, arguments, 'reference', double=True, **options)
    for backend in backends:
        found = run(function, arguments, backend, **options)
        if isinstance(reference, Exception):
            assert type(found) is type(reference), f'{backend} gave {found!r}, the reference {reference!r}'
            assert str(found) == str(reference)
            assert str(found).startswith(f'{name}: '), 'not our own words'
            continue
        if isinstance(found, BackendUnavailableError):
            assert backend == 'cpu'
            assert 'it computes in float32 and these tensors are float64' in str(found)
            continue
        assert not isinstance(found, Exception), f'{backend} refused what the reference takes: {found}'
        for label, value in reference.items():
            got = found[label]
            if value is None:  # a gradient that does not exist
                assert got is None or not got.any(), label
                continue
            assert (got.shape, got.dtype) == (value.shape, value.dtype), f'{backend}: {label}'
            dtype = next(t.dtype for t in arguments.values() if isinstance(t, torch.Tensor))
            # what nearly cancels is as uncertain as the reference itself, and as what it is the rest of
            uncertain = (value.double() - exact[label]).norm() * 8 + TOLERANCE[dtype] * exact['y'].norm()
            error = (got.double() - exact[label]).norm()
            assert error <= TOLERANCE[dtype] * exact[label].norm() + uncertain, f'{backend}: {label}'


@pytest.fixture(scope='module')
def backends():
    from mmvmamba.kernels import availability

    return [name for name, reason in availability('cpu').items() if reason is None and name in ('torch', 'cpu')]


sizes = st.integers(1, 7)


@calls(350)
@hypothesis.given(st.data())
def test_selective_scan(backends, data):
    draw = data.draw
    arguments = scan_inputs(
        batch=draw(st.integers(0, 3)),
        groups=draw(st.integers(1, 4)),
        channels=draw(st.integers(1, 9)),
        states=draw(st.integers(1, 4)),
        length=draw(st.integers(1, 40)),
        dtype=draw(st.sampled_from(DTYPES)),
    )
    if arguments['Bs'].shape[1] == 1 and draw(st.booleans()):
        arguments.update({name: arguments[name][:, 0] for name in ('Bs', 'Cs')})
    softplus = draw(st.booleans())
    if not softplus:  # a time step below 0 lets the state grow without bounds
        arguments.update({name: arguments[name].abs() for name in ('delta', 'delta_bias')})
    arguments = varied(draw, arguments, optional=('Ds', 'delta_bias'))
    compare('selective_scan', selective_scan, arguments, backends, softplus=softplus)


def grid_inputs(draw):
    return ss2d_inputs(
        batch=draw(st.integers(0, 2)),
        height=draw(sizes),
        width=draw(sizes),
        channels=draw(st.integers(1, 9)),
        states=draw(st.integers(1, 3)),
        rank=draw(st.integers(1, 4)),
        dtype=draw(st.sampled_from(DTYPES)),
    )


@calls(250)
@hypothesis.given(st.data())
def test_ss2d(backends, data):
    routes = data.draw(st.sampled_from(['cross', 'unidi', 'bidi', 'cascade', 'diagonal']))
    compare('ss2d', ss2d, varied(data.draw, grid_inputs(data.draw)), backends, routes=routes)


@calls(100)
@hypothesis.given(st.data())
def test_ss2d_norm(backends, data):
    arguments = grid_inputs(data.draw)
    x = arguments['x']
    parameter = arguments['Ds'].dtype
    channels = x.shape[3]
    arguments.update(norm_weight=torch.linspace(0.5, 1.5, channels, dtype=parameter))
    arguments.update(norm_bias=torch.linspace(-1, 1, channels, dtype=parameter), gate=x.flip(0, 1))
    routes = data.draw(st.sampled_from(['cross', 'unidi', 'bidi', 'cascade']))
    compare('ss2d_norm', ss2d_norm, varied(data.draw, arguments, optional=('gate',)), backends, routes=routes)


@calls(200)
@hypothesis.given(st.data())
def test_pooled_scan(backends, data):
    draw = data.draw
    arguments = pooled_scan_inputs(
        batch=draw(st.integers(0, 2)),
        height=draw(sizes),
        width=draw(sizes),
        channels=draw(st.integers(1, 9)),
        states=draw(st.integers(1, 3)),
        rank=draw(st.integers(1, 3)),
        window=draw(st.integers(1, 5)),
        norm=draw(st.booleans()),
        dtype=draw(st.sampled_from(DTYPES)),
    )
    options = dict(
        axis=draw(st.sampled_from(['row', 'column'])),
        pool=draw(st.sampled_from(['mean', 'max', None, 'median'])),
        scaling=draw(st.sampled_from([1.0, 1.0, 0.5])),
    )
    compare('pooled_scan', pooled_scan_by_name, varied(draw, arguments), backends, **options)


@calls(100)
@hypothesis.given(st.data())
def test_depthwise_conv_silu(backends, data):
    draw = data.draw
    generator = torch.Generator().manual_seed(0)
    channels, size = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    dtype = draw(st.sampled_from(DTYPES))

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    arguments = dict(
        x=normal(draw(st.integers(0, 2)), draw(sizes), draw(sizes), channels),
        weight=normal(channels, 1, size, size),
        bias=normal(channels),
    )
    compare('depthwise_conv_silu', depthwise_conv_silu, varied(draw, arguments, optional=('bias',)), backends)
