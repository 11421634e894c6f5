"""What PyTorch's transforms get from the operators: the right numbers, or a refusal that says what to do."""

import pytest
import torch
from mmvmamba.kernels import depthwise_conv_silu, dispatch, registration, selective_scan, ss2d, ss2d_norm
from mmvmamba.kernels.testing import assert_close, pooled_scan_by_name, pooled_scan_inputs, scan_inputs, ss2d_inputs
from torch.autograd import forward_ad

pytestmark = pytest.mark.filterwarnings('ignore:There is a performance drop')

SMALL = dict(batch=1, dtype=torch.float64)
CASES = {
    'selective_scan': (selective_scan, scan_inputs(groups=1, channels=2, length=4, **SMALL), 'u'),
    'ss2d': (ss2d, ss2d_inputs(height=2, width=3, channels=2, rank=1, **SMALL), 'x'),
    'pooled_scan': (pooled_scan_by_name, pooled_scan_inputs(height=2, width=3, channels=2, rank=1, **SMALL), 'xz'),
}


@pytest.fixture(params=CASES)
def case(request):
    """A function of the first tensor and a backend, that tensor, and a direction."""
    function, arguments, name = CASES[request.param]
    others = {k: v for k, v in arguments.items() if k != name}
    x = arguments[name]
    return lambda x, backend='torch': function(**{name: x}, **others, backend=backend), x, x.cos()


def loss(call, backend='torch'):
    return lambda x: call(x, backend).square().sum()


def test_forward_mode_is_refused(case):
    call, x, direction = case
    with pytest.raises(NotImplementedError, match=r"forward-mode .* use backend='reference'"):
        torch.func.jvp(call, (x,), (direction,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match='forward-mode'):
        call(forward_ad.make_dual(x, direction))
    with pytest.raises(NotImplementedError, match='forward-mode'):
        torch.func.hessian(loss(call))(x)


def test_forward_mode_of_a_gradient_is_refused(case):
    """Where the tangent comes in with the cotangent."""
    call, x, _ = case
    _, pull = torch.func.vjp(call, x)
    with pytest.raises(NotImplementedError, match='forward-mode'):
        torch.func.jvp(lambda cotangent: pull(cotangent)[0], (call(x),), (call(x),))


def test_a_second_derivative_is_refused_and_a_first_is_not(case):
    call, x, _ = case
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(call)(x), x, create_graph=True)
    (expected,) = torch.autograd.grad(loss(call, 'reference')(x), x)
    assert_close('x', grad, expected, 1e-10)
    with pytest.raises(NotImplementedError, match=r"differentiated once, not twice .* use backend='reference'"):
        (grad.square().sum() + x.square().sum()).backward()
    with pytest.raises(NotImplementedError, match='not twice'):
        torch.func.grad(lambda x: torch.func.grad(loss(call))(x).square().sum())(x.detach())


def test_reverse_mode_transforms_are_right(case):
    call, x, _ = case
    grad = torch.func.grad(loss(call))
    assert_close('grad', grad(x), torch.func.grad(loss(call, 'reference'))(x), 1e-10)
    batch = torch.stack([x, 2 * x])
    expected = torch.stack([call(x), call(2 * x)])
    assert_close('vmap', torch.func.vmap(call)(batch), expected, 1e-10)
    assert_close('vmap of grad', torch.func.vmap(grad)(batch), torch.stack([grad(x), grad(2 * x)]), 1e-10)


def test_a_batch_of_cotangents(case):
    """`torch.autograd` has transforms of its own, older than those of `torch.func`."""
    call, x, _ = case
    x = x.clone().requires_grad_()
    y = call(x)
    cotangents = torch.stack([y.detach(), y.detach().cos()])
    (grads,) = torch.autograd.grad(y, x, cotangents, is_grads_batched=True, retain_graph=True)
    expected = torch.stack([torch.autograd.grad(y, x, c, retain_graph=True)[0] for c in cotangents])
    assert_close('x', grads, expected, 1e-10)


def test_a_profiler_sees_the_operator(case):
    call, x, _ = case
    with torch.profiler.profile() as profile:
        call(x)
    assert any(event.key.startswith('mmvmamba::') for event in profile.key_averages())


@pytest.mark.parametrize('gated', [False, True])
def test_passes_fall_back_each_by_itself(gated, monkeypatch):
    """What the forward pass keeps serves any backend's backward pass; every pass asks once a shape."""
    asked = []

    def resolve(operator, direction, run, arguments):
        asked.append((operator, direction))
        return 'torch'

    monkeypatch.setattr(dispatch, 'choose', lambda *arguments: 'auto')
    monkeypatch.setattr(dispatch, 'resolve', resolve)
    registration.forget()
    arguments = ss2d_inputs(batch=1, height=2, width=3)
    arguments.update(norm_weight=torch.ones(8), norm_bias=torch.zeros(8))
    arguments.update(gate=torch.randn(1, 2, 3, 8)) if gated else None
    weight = torch.randn(8, 1, 3, 3, requires_grad=True)
    leaves = {k: v.requires_grad_() for k, v in arguments.items()}

    def block(x, **others):
        return ss2d_norm(depthwise_conv_silu(x, weight), **others)

    found = [torch.autograd.grad(block(**leaves).sin().sum(), [weight, *leaves.values()]) for _ in range(2)]
    assert sorted(asked) == [
        ('depthwise_conv_silu', 'backward'),
        ('depthwise_conv_silu', 'forward'),
        ('ss2d_norm', 'backward'),
        ('ss2d_norm', 'forward'),
    ]
    compiled = torch.compile(block, fullgraph=True, backend='aot_eager')
    found.append(torch.autograd.grad(compiled(**leaves).sin().sum(), [weight, *leaves.values()]))
    monkeypatch.undo()
    expected = torch.autograd.grad(block(**leaves).sin().sum(), [weight, *leaves.values()])
    registration.forget()
    for grads in found:
        for name, grad, exact in zip(['weight', *leaves], grads, expected, strict=True):
            assert_close(name, grad, exact, 1e-5)


def test_a_shape_that_passed_does_not_pass_another(case):
    """Checks are made once a shape: neither another shape nor another dtype nor another option is taken for it."""
    call, x, _ = case
    call(x)
    with pytest.raises(ValueError, match='expected'):
        call(x[..., :1].repeat_interleave(x.shape[-1] + 2, dim=-1) if x.ndim == 4 else x[:, :1])
    with pytest.raises(TypeError, match='dtype'):
        call(x.half())
