"""A guard that notices the first number that is not finite, and says where it came from."""

import collections
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmvmamba.registry import HOOKS

from . import durable
from .randomness import seed_iteration

_SMALLEST_SCALE = 2.0**-10  # below it a gradient scaler is not searching any more: gradients overflow at every scale


class NonFiniteError(FloatingPointError):
    """A training whose loss or gradient is NaN or infinite."""


class _Pending(NamedTuple):
    """What the guard still has to look at: iteration, batch, `finite` flags on their way to the host, and when."""

    iteration: int
    batch: Any
    finite: torch.Tensor
    arrived: Any


@HOOKS.register_module()
class NonFiniteGuard(Hook):
    """Stop, or skip the update, at the first loss or gradient that is NaN or infinite, and say where it arose.

    Such a gradient is set to zero on the device before the optimizer sees it, so it reaches neither weights nor
    moments, and the buffers of the forward pass (running statistics) are put back. Flags are read one iteration late on
    a GPU, when they have long arrived: the guard never makes the host wait. On a CPU they are read at once.

    At the first event the batch is replayed with hooks, and the log names the first module whose output (or, going
    backwards, gradient) is not finite. Beside the log: `nonfinite_iter_N_rankR.json` with that and what the batch was
    made of, and `nonfinite_iter_N.pth`.

    With dynamic loss scaling, overflowing gradients are part of the scaler's search and left to it, until the scale
    has become absurdly small.

    Args:
        action: 'stop' raises `NonFiniteError`; 'skip' goes on.
        patience: with 'skip', how many such iterations in a row also stop.
        interval: iterations between two looks at the loss scale.

    Raises:
        ValueError: another action, or numbers below 1.
    """

    priority = 'HIGHEST'  # before the generators are seeded for the next iteration, and before a checkpoint is written

    def __init__(self, action: str = 'stop', patience: int = 10, interval: int = 50):
        if action not in ('stop', 'skip'):
            raise ValueError(f"{type(self).__name__}: action={action!r}; expected 'stop' or 'skip'")
        for name, value in (('patience', patience), ('interval', interval)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'{type(self).__name__}: {name}={value!r}; expected a whole number above 0')
        self.action, self.patience, self.interval = action, patience, interval
        self.count = 0
        self._in_a_row = 0
        self._gradients_finite = None
        self._buffers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._pending: collections.deque[_Pending] = collections.deque()

    def before_train(self, runner) -> None:
        """Get between the gradients and the optimizer."""
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for each in wrappers:
            if isinstance(each.optimizer, torch.optim.Optimizer):  # DeepSpeed's checks its gradients itself
                each.optimizer.register_step_pre_hook(self._check_gradients)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Remember what a forward pass changes."""
        self._gradients_finite = None
        self._buffers = [(b, b.clone()) for b in runner.model.buffers() if b.is_floating_point()]

    def _check_gradients(self, optimizer, args, kwargs) -> None:
        """Pre-hook of a step: note whether all gradients are finite, and set them to zero if not."""
        if getattr(optimizer, 'found_inf', None) is not None:  # a scaler steps, and has looked
            return
        parameters = [p for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        if not parameters:
            return
        # a limit of infinity leaves the gradients alone; the largest magnitude does not overflow as a sum would
        largest = nn.utils.clip_grad_norm_(parameters, math.inf, norm_type=math.inf)
        finite = largest.isfinite().to(torch.uint8)
        all_reduce(finite, 'min')  # shards of one gradient must agree
        if not _asynchronous(finite):
            if not finite:
                for parameter in parameters:
                    parameter.grad.zero_()
        else:
            for parameter in parameters:
                parameter.grad.masked_fill_(finite == 0, 0.0)
        self._gradients_finite = finite if self._gradients_finite is None else self._gradients_finite * finite

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Send the flags of this iteration to the host and look at those that have arrived."""
        loss = (outputs or {}).get('loss')
        if not isinstance(loss, torch.Tensor):
            return
        loss_finite = loss.detach().isfinite().all().to(torch.uint8)
        all_reduce(loss_finite, 'min')  # all processes replay together or not at all
        gradient_finite = torch.ones_like(loss_finite) if self._gradients_finite is None else self._gradients_finite
        finite = torch.stack([loss_finite, gradient_finite.to(loss_finite.device)])
        asynchronous = _asynchronous(finite)
        if asynchronous:
            fine = finite.all().bool()
            for buffer, before in self._buffers:
                buffer.copy_(torch.where(fine, buffer, before))
        elif not finite.all():
            for buffer, before in self._buffers:
                buffer.copy_(before)
        self._buffers = []
        arrived = None
        finite = finite.to('cpu', non_blocking=True)
        if asynchronous:
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending.append(_Pending(runner.iter, data_batch, finite, arrived))
        self._look(runner, late=int(asynchronous))
        if self.every_n_train_iters(runner, self.interval):
            self._check_scale(runner)

    def after_train(self, runner) -> None:
        """Look at what is left."""
        self._look(runner, late=0)

    def _look(self, runner, late: int) -> None:
        """Deal with all iterations but the last `late`, which may still be running."""
        while len(self._pending) > late:
            pending = self._pending.popleft()
            if pending.arrived is not None:
                pending.arrived.synchronize()  # recorded an iteration ago: it has passed
            if pending.finite.all():
                self._in_a_row = 0
            else:
                kind = 'gradient' if pending.finite[0] else 'loss'
                self._event(runner, pending.iteration, pending.batch, f'the {kind} is not finite')

    def _check_scale(self, runner) -> None:
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        if scaler is not None and scaler.is_enabled() and scaler.get_scale() < _SMALLEST_SCALE:
            raise NonFiniteError(
                f'iteration {runner.iter + 1}: the loss scale has fallen to {scaler.get_scale():.3g}, so the gradients '
                f'overflow whatever the scale; train with --amp bf16, or look at the data and the learning rate'
            )

    def _event(self, runner, iteration: int, batch, what: str) -> None:
        """Report one iteration: in full the first time, counted later."""
        self.count += 1
        self._in_a_row += 1
        text = f'iteration {iteration + 1}: {what}'
        if self.count == 1:
            text += f'; {self._report(runner, iteration, batch, what)}'
        if self.action == 'stop':
            raise NonFiniteError(text)
        runner.logger.warning(f'{text}; skipped, {self.count} so far')
        if self._in_a_row >= self.patience:
            raise NonFiniteError(f'{text}; stopping after {self._in_a_row} such iterations in a row')

    def _report(self, runner, iteration: int, batch, what: str) -> str:
        """Write the files; say where the number arose."""
        name = f'nonfinite_iter_{iteration + 1}'
        durable.save(runner, runner.log_dir, f'{name}.pth', by_epoch=False)
        where = replay(runner, iteration, batch)
        path = Path(runner.log_dir, f'{name}_rank{runner.rank}.json')
        content = dict(iteration=iteration + 1, what=what, where=where, batch=list(_metas(batch)))
        path.write_text(json.dumps(content, indent=2, default=str))
        where = f'{where}; see {path} and {name}.pth beside it'
        runner.logger.error(where)
        return where


def _asynchronous(tensor: torch.Tensor) -> bool:
    """Whether reading a tensor would make the host wait."""
    return tensor.is_cuda


def _metas(batch) -> Iterator[dict]:
    """What the samples of a batch say of themselves: paths, sizes, flips."""
    for element in _walk(batch):
        if isinstance(element, BaseDataElement):
            yield element.metainfo


def _walk(nested) -> Iterator[Any]:
    """Leaves of nested containers."""
    if isinstance(nested, Mapping):
        nested = list(nested.values())
    if isinstance(nested, Sequence) and not isinstance(nested, (str, bytes)):
        for each in nested:
            yield from _walk(each)
    else:
        yield nested


def _floats(nested) -> list[torch.Tensor]:
    return [t for t in _walk(nested) if isinstance(t, torch.Tensor) and t.is_floating_point()]


def _finite(tensors: Sequence[torch.Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


class _Trace:
    """Hooks that find the first module where a number stops being finite, forwards and backwards."""

    def __init__(self, model: nn.Module):
        self.forward: str | None = None
        self.backward: str | None = None
        self._bad_outputs: set[str] = set()
        self._handles = []
        for name, module in model.named_modules():
            label = f'{name or "the model"} ({type(module).__name__})'
            hook = functools.partial(self._after_forward, label)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad:
                    self._handles.append(parameter.register_hook(functools.partial(self._below, label)))

    def _after_forward(self, label, module, args, kwargs, output) -> None:
        inputs, outputs = _floats((args, kwargs)), _floats(output)
        if self.forward is None and not _finite(outputs):
            parameters = 'finite' if _finite(list(module.parameters())) else 'not finite'
            came = 'finite' if _finite(inputs) else 'not finite'
            self.forward = f'first in the output of {label}; its inputs are {came}, its parameters {parameters}'
        for tensors, hook in ((outputs, self._above), (inputs, self._below)):
            for tensor in tensors:
                if tensor.requires_grad:
                    tensor.register_hook(functools.partial(hook, label))

    def _above(self, label, gradient) -> None:
        """The gradient that enters a module from behind."""
        if not _finite([gradient]):
            self._bad_outputs.add(label)

    def _below(self, label, gradient) -> None:
        """The gradient of a module's input or parameter."""
        if self.backward is None and label not in self._bad_outputs and not _finite([gradient]):
            self.backward = (
                f'first in the backward pass of {label}: the gradient of its output is finite, that of an input or '
                f'parameter is not'
            )

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def replay(runner, iteration: int, batch) -> str:
    """Run a batch again, as iteration `iteration` drew its random numbers, and say where it stops being finite.

    Weights, gradients and buffers are as before afterwards. All processes must call it.
    """
    model = runner.model.module if isinstance(runner.model, DistributedDataParallel) else runner.model
    inner = model.module if is_model_wrapper(model) else model
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters]
    buffers = [(b, b.clone()) for b in model.buffers()]
    seed_iteration(runner, iteration)
    trace = _Trace(model)
    try:
        with runner.optim_wrapper.optim_context(model):
            data = inner.data_preprocessor(batch, True)
            losses = model._run_forward(data, mode='loss')
        loss, _ = inner.parse_losses(losses)
        if trace.forward is None and not _finite([loss.detach()]):
            trace.forward = f'no output of a module, but the loss: {_bad_losses(losses)}'
        if trace.forward is None:
            loss.backward()
    finally:
        trace.remove()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for buffer, before in buffers:
            buffer.copy_(before)
    return trace.forward or trace.backward or 'a replay of the batch with the weights of now is finite throughout'


def _bad_losses(losses: Mapping) -> list[str]:
    return [name for name, value in losses.items() if not _finite(_floats(value))]
