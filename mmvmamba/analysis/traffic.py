"""Memory traffic of the Triton operators, counted in Triton's interpreter from what their kernels load and store.

Every load and store of a kernel counts with its lanes that are not masked out times the size of an element, whichever
memory of a GPU would serve it. A second figure counts an address once a launch: what device memory must deliver if the
caches keep it for as long as the launch runs. A PyTorch operation between two kernels counts with its tensors, read and
written. The unit is E = B * H * W * D bytes, D the operator's channels: a bf16 activation read once is 2 E.
"""

import contextlib
import os
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmvmamba.kernels.testing import pooled_scan_inputs, ss2d_inputs
from mmvmamba.models.backbones.fastvim import ARCHS as FASTVIMS
from mmvmamba.models.backbones.vmamba import ARCHS as VMAMBAS

FLOORS = {'ss2d': 7.1, 'pooled_scan': 8.0}
"""Bytes / E that a forward pass in bf16 cannot do without, by our own reckoning."""

GOALS = {'ss2d': 30.0, 'pooled_scan': 10.0}

ARCHS = {'ss2d': 'tiny_s1l8', 'pooled_scan': 'tiny'}
"""The smallest."""

SIDES = {'ss2d': 56, 'pooled_scan': 64}
"""Of the grids that an operator's first stage has in practice: images of 224 (classification) and 1024 (detection)."""

POOLS = {'mean': 'mean', 'max': 'max', 'none': None}


@dataclass
class Traffic:
    """Bytes of launches of a kernel, or of PyTorch operations, of one name."""

    name: str
    read: int = 0
    written: int = 0
    distinct: int = 0
    _addresses: dict = field(default_factory=dict, repr=False)

    def access(self, kind: str, addresses: np.ndarray, size: int) -> None:
        """Count addresses of elements of `size` bytes, `kind` 'read' or 'written'."""
        setattr(self, kind, getattr(self, kind) + addresses.size * size)
        self._addresses.setdefault((kind, size), []).append(np.unique(addresses))

    def finish(self) -> None:
        """Count every address once."""
        self.distinct = sum(
            np.unique(np.concatenate(parts)).size * size for (_, size), parts in self._addresses.items()
        )
        self._addresses.clear()

    def add(self, other: 'Traffic') -> None:
        """Count another one's bytes as well."""
        self.read += other.read
        self.written += other.written
        self.distinct += other.distinct


class _Operations(TorchDispatchMode):
    """Adds PyTorch's operations to a list of `Traffic`, except views and what the interpreter does for a launch."""

    def __init__(self, counts: list[Traffic]):
        super().__init__()
        self.counts = counts
        self.launching = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if self.launching or 'empty' in function.__name__:
            return result
        inputs, outputs = (
            [t for t in tree_leaves(part) if isinstance(t, torch.Tensor)] for part in ((args, kwargs), result)
        )
        storages = {t.untyped_storage().data_ptr() for t in inputs}
        if not all(t.untyped_storage().data_ptr() in storages for t in outputs) or function._schema.is_mutable:
            read, written = (sum(t.numel() * t.element_size() for t in part) for part in (inputs, outputs))
            self.counts.append(Traffic(function.__name__, read, written, read + written))
        return result


@contextlib.contextmanager
def _replaced(owner, name: str, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def counting(multiprocessors: int):
    """Collect the `Traffic` of all launches and operations inside, for a GPU with so many multiprocessors.

    Raises:
        RuntimeError: Triton's interpreter is not switched on.
    """
    if os.environ.get('TRITON_INTERPRET') != '1':
        raise RuntimeError("traffic is counted in Triton's interpreter; set TRITON_INTERPRET=1 in the environment")
    from triton.runtime import interpreter

    from mmvmamba.kernels.pooled_scan import triton_gate
    from mmvmamba.kernels.shared_triton import numerics, scan
    from mmvmamba.kernels.ss2d import triton_norm

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, launch = builder.create_masked_load, builder.create_masked_store, executor.__call__
    counts: list[Traffic] = []
    operations = _Operations(counts)

    def note(kind, pointers, mask):
        addresses = pointers.data[np.broadcast_to(mask.data != 0, pointers.data.shape)]
        counts[-1].access(kind, addresses, pointers.get_element_ty().primitive_bitwidth // 8)

    def counted_load(self, pointers, mask, *others):
        note('read', pointers, mask)
        return load(self, pointers, mask, *others)

    def counted_store(self, pointers, value, mask, *others):
        note('written', pointers, mask)
        return store(self, pointers, value, mask, *others)

    def counted_launch(self, *arguments, **options):
        counts.append(Traffic(self.fn.__name__))
        operations.launching = True
        launch(self, *arguments, **options)
        operations.launching = False
        counts[-1].finish()

    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(builder, 'create_masked_load', counted_load))
        stack.enter_context(_replaced(builder, 'create_masked_store', counted_store))
        stack.enter_context(_replaced(executor, '__call__', counted_launch))
        for module in (numerics, scan, triton_norm, triton_gate):
            stack.enter_context(_replaced(module, 'multiprocessors', lambda device: multiprocessors))
        stack.enter_context(operations)
        yield counts


def _ss2d(arch, grid):
    """A forward pass and its channels."""
    from mmvmamba.kernels.ss2d.triton_scan import forward_norm

    spec = VMAMBAS[arch]
    channels = int(spec['embed_dims'] * spec['ssm_ratio'])
    rank = -(-spec['embed_dims'] // 16)
    arguments = ss2d_inputs(*grid, channels, spec['d_state'], rank, dtype=torch.bfloat16).values()
    norm = torch.ones(channels), torch.zeros(channels)
    return lambda: forward_norm(*arguments, *norm, None, 1e-5, 'cross', trains=False), channels


def _pooled_scan(arch, grid, pool):
    """A forward pass and its channels."""
    from mmvmamba.kernels.pooled_scan.triton_scan import forward

    spec = FASTVIMS[arch]
    channels, rank = spec['expand'] * spec['embed_dims'], -(-spec['embed_dims'] // 16)
    arguments = pooled_scan_inputs(*grid, channels, spec['d_state'], rank, spec['d_conv'], dtype=torch.bfloat16)
    xz, *tensors, weight, bias = arguments.values()
    half = len(tensors) // 2
    directions = tensors[:half], tensors[half:]
    return lambda: forward(xz, directions, weight, bias, 'row', pool, 1.0, 1e-5), channels


def traffic(
    operator: str, arch: str, height: int, width: int, batch: int, pool: str, multiprocessors: int
) -> list[dict]:
    """Count an inference pass in bf16: `ss2d` with its norm, or `pooled_scan`, FastVim's mixer between its projections.

    Args:
        operator: 'ss2d' or 'pooled_scan'.
        arch: whose sizes, a VMamba (its first stage) or a FastVim.
        height, width: the grid.
        batch: images.
        pool: a key of `POOLS` (`pooled_scan` only).
        multiprocessors: of the GPU, which decides how finely the work is cut.

    Returns:
        A row per kernel or operation and one for their sum, bytes / E, beside floor and goal.

    Raises:
        RuntimeError: Triton's interpreter is not switched on.
    """
    grid = batch, height, width
    run, channels = _ss2d(arch, grid) if operator == 'ss2d' else _pooled_scan(arch, grid, POOLS[pool])
    with counting(multiprocessors) as launches:
        run()
    elements = batch * height * width * channels
    counts: dict[str, Traffic] = {}
    for launch in launches:
        counts.setdefault(launch.name, Traffic(launch.name)).add(launch)
    total = Traffic('sum')
    for count in counts.values():
        total.add(count)
    rows = [
        {
            'step': count.name,
            'read': f'{count.read / elements:.2f}',
            'written': f'{count.written / elements:.2f}',
            'both': f'{(count.read + count.written) / elements:.2f}',
            'every address once': f'{count.distinct / elements:.2f}',
        }
        for count in (*counts.values(), total)
    ]
    limits = {'floor': FLOORS[operator], 'goal': GOALS[operator]}
    return [row | {key: str(value) if row is rows[-1] else '' for key, value in limits.items()} for row in rows]
