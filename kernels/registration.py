"""How every operator is made one of PyTorch's: schema, shapes for tracing, one derivative, what is refused.

An eager call of plain tensors that nobody but autograd looks at runs the implementation at once: PyTorch's dispatcher
would cost the host more than the checks, and a GPU waits for it. Every other call (compiled, exported, traced,
transformed, profiled) goes through `torch.ops.mmvmamba`.
"""

import functools

import torch
from torch.autograd import forward_ad

from . import dispatch, gradients

_NAMESPACE = 'mmvmamba'
_library = torch.library.Library(_NAMESPACE, 'FRAGMENT')
_TAGS = (torch._C.Tag.pt2_compliant_tag, torch._C.Tag.needs_fixed_stride_order)
_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, type(None)))


# What tells two sets of dispatch keys apart; in PyTorch 2.4 they have no number, only a name.
_identity = getattr(torch._C.DispatchKeySet, 'raw_repr', repr)


def _keys(*names):
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, names[0]))
    for name in names[1:]:
        keys = keys | torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name))
    return _identity(keys)


_QUIET = frozenset((_keys('BackendSelect', 'ADInplaceOrView'), _keys('BackendSelect')))  # the latter in inference mode

operators: dict[str, 'CustomOperator'] = {}
"""All of them, by their names."""

_MOST = 10_000
_resolved: dict[tuple, str] = {}  # at most so many; a training run on images of all sizes has thousands


def forget() -> None:
    """Drop which backends were taken where it was left open."""
    _resolved.clear()


class CustomOperator:
    """An operator and its backward pass, registered with PyTorch.

    Its last argument is the backend: a name, or 'auto' to have `dispatch.resolve` decide for each pass when it runs.

    Args:
        implementations: of the operator.
        tensors: the schema of its tensors, by which it can be differentiated once. The first one says where it runs.
        fake: makes the results without data from the arguments but the backend.
        options: the schema of its other arguments but the backend.
        name: if it is another one's name than the implementations'.
        forward: runs a module of `implementations`: `forward(module, *tensors, *options)` returns the result, or with
            `keeps` the result and a tensor for the backward pass.
        backward: `backward(module, dy, *tensors, *options)`, with `keeps` that tensor after dy, returns the gradients
            of all tensors, an empty one for one that is absent.
        keeps: see `forward`.
    """

    def __init__(
        self,
        implementations: dispatch.Operator,
        tensors: str,
        fake,
        options: str = '',
        name: str | None = None,
        forward=lambda module, *arguments: module.forward(*arguments),
        backward=lambda module, *arguments: module.backward(*arguments),
        keeps: bool = False,
    ):
        self.name = name or implementations.name
        self._implementations, self._loaded = implementations, {}
        self._forward, self._backward, self._keeps = forward, backward, keeps
        self._count = count = tensors.count(',') + 1
        arguments = ', '.join(filter(None, (tensors, options, 'str backend')))
        kept, outputs = ('Tensor kept, ', '(Tensor, Tensor)') if keeps else ('', 'Tensor')
        gradient_outputs = f'({", ".join(["Tensor"] * count)})'
        first = 1 + keeps  # dy and what was kept come before the tensors
        self._op = _define(f'{self.name}({arguments}) -> {outputs}', self._run, lambda *args: fake(*args[:-1]))
        self._backward_op = _define(
            f'{self.name}_backward(Tensor dy, {kept}{arguments}) -> {gradient_outputs}',
            lambda *args: gradients.apart(self._run_backward(*args)),
            lambda *args: gradients.empty_like_inputs(*args[first : first + count]),
        )
        self._function, self._direct = _differentiable(self), _differentiable(self, direct=True)
        _library.impl(self.name, self._dispatched, 'Autograd', with_keyset=True)
        _library.impl(f'{self.name}_backward', self._backward_dispatched, 'Autograd', with_keyset=True)
        operators[self.name] = self

    def __call__(self, *arguments):
        """Run it, through PyTorch's dispatcher where anybody may look."""
        if arguments[-1] == dispatch.DECOMPOSED:
            return self.decomposed(*arguments[:-1])
        tensors = arguments[: self._count]
        if torch.compiler.is_compiling() or not _is_plain(tensors):
            y = self._op(*arguments)
            return y[0] if self._keeps else y
        if needs_gradient(tensors):
            return self._direct.apply(*arguments)
        y = self._run(*arguments)
        return y[0] if self._keeps else y

    def decomposed(self, *arguments):
        """The result in standard operators, for exporters; arguments as in the schema, but without the backend."""
        y = self._forward(self._implementations.load(dispatch.DECOMPOSED), *arguments)
        return y[0] if self._keeps else y

    @property
    def op(self):
        """What stands for a call in a graph: an overload of `torch.ops.mmvmamba`."""
        return self._op

    def run(self, direction: str, *arguments):
        """One pass, 'forward' or 'backward', by what implements it: past PyTorch's dispatcher and autograd."""
        return (self._run if direction == 'forward' else self._run_backward)(*arguments)

    def _module(self, direction: str, backend: str, run, arguments: tuple):
        """The implementation that runs one pass with these arguments."""
        if backend == 'auto':
            key = (self.name, direction, *map(_trait, arguments))
            backend = _resolved.get(key)
            if backend is None:
                triton = functools.partial(self._implementations.load, 'triton')
                backend = dispatch.resolve(self.name, direction, lambda: run(triton(), *arguments), arguments)
                if len(_resolved) >= _MOST:
                    forget()
                _resolved[key] = backend
        module = self._loaded.get(backend)
        if module is None:
            module = self._loaded[backend] = self._implementations.load(backend)
        return module

    def _run(self, *arguments):
        device = arguments[0].device
        if torch.is_autocast_enabled(device.type):
            with dispatch.full_precision(device):  # where it is decided what runs as well
                return self._run(*arguments)
        *arguments, backend = arguments
        return self._forward(self._module('forward', backend, self._forward, arguments), *arguments)

    def _run_backward(self, *arguments):
        device = arguments[0].device
        if torch.is_autocast_enabled(device.type):
            with dispatch.full_precision(device):
                return self._run_backward(*arguments)
        *arguments, backend = arguments
        grads = self._backward(self._module('backward', backend, self._backward, arguments), *arguments)
        first = 1 + self._keeps
        return gradients.as_inputs(grads, arguments[first : first + self._count])

    def _dispatched(self, keyset, *arguments):
        """What autograd does at a call that came through the dispatcher."""
        tensors = arguments[: self._count]
        self._refuse_tangents(tensors)
        if needs_gradient(tensors):
            return _apply(self._function, keyset, *arguments)
        return _below_autograd(self._op, keyset, arguments)

    def _refuse_tangents(self, tensors):
        if _any_tangent(tensors):
            raise NotImplementedError(
                f'{self.name}: forward-mode differentiation (torch.func.jvp, jacfwd, hessian; dual tensors) of the '
                "compiled and vectorised backends does not exist; use backend='reference', or reverse mode"
            )

    def _backward_dispatched(self, keyset, *arguments):
        """A gradient of the gradient is refused where it is asked for: the result may never be differentiated."""
        tensors = arguments[: self._count + 1 + self._keeps]
        self._refuse_tangents(tensors)
        grads = _below_autograd(self._backward_op, keyset, arguments)
        if needs_gradient(tensors):
            return _apply(_Refusal, self.name, grads, *tensors)
        return grads


def needs_gradient(tensors) -> bool:
    """Whether autograd will differentiate what is computed from these tensors (or None) here."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors if t is not None)


def _define(schema: str, run, fake):
    """Register an operator for every device; return its only overload."""
    _library.define(schema, tags=_TAGS)
    name = schema.partition('(')[0]
    # a call from compiled code must not have the implementation compiled
    _library.impl(name, torch._disable_dynamo(lambda *arguments: run(*arguments)), 'CompositeExplicitAutograd')
    torch.library.register_fake(f'{_NAMESPACE}::{name}', fake, lib=_library)
    return getattr(getattr(torch.ops, _NAMESPACE), name).default


def _is_plain(tensors) -> bool:
    """Whether only autograd, in reverse, and autocast take an interest in what is done to these tensors (or None).

    Modes and transforms of PyTorch's announce themselves in the thread's set of dispatch keys, but not all of them.
    """
    return (
        _identity(torch._C._dispatch_tls_local_include_set()) in _QUIET
        and forward_ad._current_level < 0
        and not torch.autograd._profiler_enabled()
        and not torch.jit.is_tracing()
        and not tensors[0].is_meta
        and _PLAIN.issuperset(map(type, tensors))
    )


def _trait(argument):
    """What of an argument may decide which backend runs."""
    return (argument.shape, argument.dtype, argument.device) if isinstance(argument, torch.Tensor) else argument


def _any_tangent(tensors) -> bool:
    """Whether they are differentiated in forward mode; one that is differentiated in reverse as well hides it."""
    if forward_ad._current_level < 0:
        return False
    with forward_ad._set_fwd_grad_enabled(True):
        return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors if t is not None)


def _below_autograd(op, keyset, arguments):
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


def _apply(function, *arguments):
    """Apply a function to what PyTorch's dispatcher gives an autograd kernel, which torch.func has seen already."""
    if not torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    allowed = torch._C._functorch.get_single_level_autograd_function_allowed()
    torch._C._functorch.set_single_level_autograd_function_allowed(True)
    try:
        return function.apply(*arguments)
    finally:
        torch._C._functorch.set_single_level_autograd_function_allowed(allowed)


def _differentiable(operator: CustomOperator, direct: bool = False) -> type:
    """The operator with its derivative.

    Args:
        operator: to be differentiated.
        direct: run implementations at once, of plain tensors, and return the result alone. Else the first argument is
            the dispatcher's keyset, and what is returned is what the operator returns.
    """
    count, keeps = operator._count, operator._keeps

    def forward(ctx, *arguments):
        if direct:
            y = operator._run(*arguments)
        else:
            keyset, *arguments = arguments
            y = _below_autograd(operator._op, keyset, arguments)
        ctx.options = arguments[count:]
        if not keeps:
            ctx.save_for_backward(*arguments[:count])
            return y
        ctx.save_for_backward(y[1], *arguments[:count])
        if direct:
            return y[0]
        ctx.mark_non_differentiable(y[1])
        ctx.set_materialize_grads(False)
        return y

    def backward(ctx, dy, *_):
        before, behind = () if direct else (None,), (None,) * len(ctx.options)
        if dy is None:
            return *before, *(None,) * count, *behind
        saved = ctx.saved_tensors
        tensors = saved[keeps:]
        run = operator._backward_op
        # where the gradient may be differentiated again the dispatcher's refusal is wanted
        if direct and not torch.is_grad_enabled() and _is_plain((dy, *saved)):
            run = operator._run_backward
        grads = gradients.as_autograd(run(dy.contiguous(), *saved, *ctx.options), tensors)
        return *before, *grads, *behind

    # the base of torch.autograd.Function knows nothing of torch.func: there is none, or the dispatcher has applied it
    base = torch.autograd.function._SingleLevelFunction
    functions = dict(forward=staticmethod(forward), backward=staticmethod(backward))
    return type(f'{operator.name}_function', (base,), functions)


class _Refusal(torch.autograd.function._SingleLevelFunction):
    """Gradients that cannot be differentiated."""

    @staticmethod
    def forward(ctx, name, grads, *tensors):
        ctx.name = name
        return tuple(grads)

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(
            f'{ctx.name}: the compiled and vectorised backends can be differentiated once, not twice (gradient '
            "penalties, Hessians, torch.func.grad of a gradient); use backend='reference'"
        )
