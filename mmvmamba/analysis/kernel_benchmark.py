"""The scan's kernels against each other and against what they replace, alone or as a whole backbone's worth of them."""

import functools
from collections.abc import Callable

import torch

from mmvmamba.kernels import availability, ss2d_norm
from mmvmamba.kernels.testing import ss2d_inputs
from mmvmamba.models.backbones.vmamba import ARCHS

from . import unfused
from .memory import peak_memory
from .timing import Times, failures, interleaved

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
_UNFUSED = 'unfused PyTorch'
_PASSES = {False: 'forward', True: 'forward + backward'}


def kernels(
    arch: str | None,
    height: int,
    width: int,
    channels: int,
    states: int,
    batch: int,
    dtype: str,
    backends: list[str] | None,
    compiled: bool,
    repeat: int,
) -> list[dict]:
    """Time `ss2d_norm` on every backend, beside the unfused pipeline around every scan that is installed.

    Args:
        arch: a VMamba, for the sum over all blocks of its stages; height and width are then pixels of the image.
        height, width, channels, states: without an arch, the grid of the one block and its state's size.
        batch: images.
        dtype: of the activations, a key of `DTYPES`.
        backends: to time; None for all that can run here.
        compiled: time `torch.compile` of the unfused pipeline as well.
        repeat: measured rounds.

    Returns:
        A row per candidate and pass, or why it could not be timed. GB/s count what any implementation must move:
        x and y forward; x, dy and dx as well backward. Peak memory is the highest of any block.
    """
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    able = [backend for backend, reason in availability(device).items() if reason is None]
    backends = able if backends is None else backends
    shapes = _stages(arch, height, width) if arch else [(1, height, width, channels, states, -(-channels // 16))]
    rows = []
    for backward, label in _PASSES.items():
        totals: dict[str, _Total] = {}
        for blocks, *sizes in shapes:
            torch.compiler.reset()
            candidates = _candidates(_inputs(batch, *sizes, DTYPES[dtype], device), backends, compiled, backward)
            _time(candidates, blocks, totals, repeat, device)
        elements = sum(blocks * batch * h * w * d for blocks, h, w, d, *_ in shapes)
        moved = elements * DTYPES[dtype].itemsize * (5 if backward else 2)
        base = totals[_UNFUSED].times
        for name, total in totals.items():
            rows.append({'pass': label, 'candidate': name, **total.row(elements, moved, base)})
    return rows


class _Total:
    """Times of one candidate over the blocks of all stages."""

    def __init__(self):
        self.times: Times | None = Times(0.0, 0.0, 0.0)
        self.memory = 0
        self.note = ''

    def add(self, blocks: int, times: Times, memory: int, note: str) -> None:
        if self.times is not None:
            self.times = Times(*(getattr(self.times, p) + blocks * getattr(times, p) for p in ('p20', 'p50', 'p80')))
            self.memory = max(self.memory, memory)
            self.note = note

    def fail(self, reason: str) -> None:
        self.times, self.note = None, reason

    def row(self, elements: int, moved: int, base: Times | None) -> dict:
        """Figures for a table: of `elements` of one activation and the bytes `moved`; ratio to `base`."""
        keys = ('p20 ms', 'p50 ms', 'p80 ms', 'ns/element/route', 'GB/s', 'peak MiB', f'time of {_UNFUSED} / this')
        if self.times is None:
            return dict.fromkeys(keys, '') | {'timed': self.note}
        t = self.times
        values = [f'{1e3 * seconds:.3f}' for seconds in (t.p20, t.p50, t.p80)]
        values += [f'{t.p50 / elements / 4 * 1e9:.3g}', f'{moved / t.p50 / 1e9:.1f}', f'{self.memory / 2**20:.0f}']
        values.append('' if base is None else f'{base.p50 / t.p50:.2f}')
        return dict(zip(keys, values, strict=True)) | {'timed': self.note}


def _stages(arch: str, height: int, width: int) -> list[tuple[int, ...]]:
    """Number of blocks, H, W, D, N, R of every stage for an image of `height` by `width` pixels."""
    spec = ARCHS[arch]
    stages = []
    for i, depth in enumerate(spec['depths']):
        dims = spec['embed_dims'] * 2**i
        cell = 4 * 2**i
        size = (-(-height // cell), -(-width // cell))
        stages.append((depth, *size, int(dims * spec['ssm_ratio']), spec['d_state'], -(-dims // 16)))
    return stages


def _inputs(batch, height, width, channels, states, rank, dtype, device) -> dict[str, torch.Tensor]:
    arguments = ss2d_inputs(batch, height, width, channels, states, rank, dtype, device)
    arguments['norm_weight'] = torch.ones(channels, device=device)
    arguments['norm_bias'] = torch.zeros(channels, device=device)
    return arguments


def _candidates(arguments, backends, compiled, backward) -> dict[str, Callable[[], object] | str]:
    """Functions to time by name, or why there is none."""
    published = dict(arguments, x=arguments['x'].permute(0, 3, 1, 2).contiguous())
    cotangent = torch.ones_like(arguments['x'])

    def run(function, arguments):
        leaves = {k: v.detach().requires_grad_(backward) for k, v in arguments.items()}

        def call():
            with torch.set_grad_enabled(backward):
                y = function(**leaves)
            if backward:
                torch.autograd.grad(y, list(leaves.values()), cotangent)

        return call

    pipeline = functools.partial(unfused.ss2d_norm, scan=unfused.scan)
    found = {backend: run(functools.partial(ss2d_norm, backend=backend), arguments) for backend in backends}
    found[_UNFUSED] = run(pipeline, published)
    if compiled:
        found[f'{_UNFUSED}, torch.compile'] = run(torch.compile(pipeline, dynamic=False), published)
    for package, scan_of in unfused.PEERS.items():
        name = f'unfused, scan by {package}'
        try:
            found[name] = run(functools.partial(unfused.ss2d_norm, scan=scan_of()), published)
        except ImportError:
            found[name] = f'{package} is not installed'
    return found


def _time(candidates, blocks: int, totals: dict[str, _Total], repeat: int, device: str) -> None:
    """Add what the candidates take for one stage; one that fails is left out from there on, with the reason."""
    ready, notes, memory = {}, {}, {}
    for name, function in candidates.items():
        total = totals.setdefault(name, _Total())
        if isinstance(function, str):
            total.fail(function)
        if total.times is None:
            continue
        try:
            function()
            memory[name] = peak_memory(function)
            ready[name], notes[name] = _captured(function) if device == 'cuda' else (function, 'calls')
        except failures() as error:  # too little memory, no C++ compiler
            total.fail(f'{type(error).__name__}: {error}'.splitlines()[0])
    for name, times in interleaved(ready, repeat, device, warm=device == 'cpu').items():
        totals[name].add(blocks, times, memory[name], notes[name])


def _captured(function) -> tuple[Callable[[], object], str]:
    """What `function` launches as one CUDA graph, so that Python's time between kernels is not in the figure."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            function()
    except RuntimeError:  # waits for the GPU or asks the driver for memory: not capturable
        torch.cuda.synchronize()
        return function, 'calls'
    return graph.replay, 'graph'
