"""Compile every Triton kernel ahead of time, without a GPU, and read its machine code.

Examples:
    python tools/aot_report.py                     # sm_80 and sm_90, every shape of a published model
    python tools/aot_report.py --targets sm_90 --archs tiny_s1l8 --json report.json
    python tools/aot_report.py --targets sm_100 sm_120 --archs tiny_s1l8 fastvim_tiny    # Blackwell

One row a kernel, variant and target: registers, bytes spilled, shared memory, how many programs of it a multiprocessor
holds at a time, and of the largest loop the instructions and special functions per element and route. Exits with 1 if a
kernel spills or exceeds a stated budget.
"""

import argparse
import collections
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

try:
    import triton
except ImportError as missing:
    sys.exit(f'aot_report.py: the compiler is not installed ({missing}); pip install triton')
from mmvmamba.kernels.depthwise_conv import triton_conv
from mmvmamba.kernels.pooled_scan import (
    triton_gate,
    triton_gate_bwd,
    triton_pool,
    triton_pool_bwd,
    triton_scan,
    triton_stack,
)
from mmvmamba.kernels.shared_triton import (
    chunk_scan,
    chunk_scan_bwd,
    chunk_state,
    scan,
    scan_bwd,
    state_passing,
    sums,
    tile_state,
)
from mmvmamba.kernels.shared_triton.numerics import BT, launch_options
from mmvmamba.kernels.shared_triton.spec import IN_REGISTERS, Spec, rank_block, scan_block, scan_bwd_block
from mmvmamba.kernels.ss2d import triton_norm
from rich.console import Console
from rich.progress import track
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmvmamba.models.backbones.fastvim import ARCHS as FASTVIMS
from mmvmamba.models.backbones.vmamba import ARCHS as VMAMBAS

TARGETS = {
    'sm_80': GPUTarget('cuda', 80, 32),
    'sm_90': GPUTarget('cuda', 90, 32),
    'sm_100': GPUTarget('cuda', 100, 32),
    'sm_120': GPUTarget('cuda', 120, 32),
    'gfx942': GPUTarget('hip', 'gfx942', 64),
}
BUDGETED = ('sm_80', 'sm_90')
"""Targets whose machine code the budgets of instructions were read from."""

DTYPES = {'bf16': 'bf16', 'fp16': 'fp16', 'fp32': 'fp32'}
CROSS = dict(K=4, GROUPED=False, LONG_LINES=True, COLUMNS=0b1010, REVERSES=0b1100, KEEPS=0)
BOTH_WAYS = dict(K=2, GROUPED=True, LONG_LINES=False, COLUMNS=0, REVERSES=0b10, KEEPS=0)
ARCHS = {
    **VMAMBAS,
    **{f'fastvim_{arch}': spec for arch, spec in FASTVIMS.items()},
    'fastchannelvim_small': FASTVIMS['small'],
}
NO_GROUPS = dict(group=None, group_step=None)
"""What the pooled scan's kernels are called without where a grid has no planes."""

MULTIPROCESSORS = {  # warps, programs, bytes of shared memory; all have 65,536 registers
    'sm_80': (64, 32, 164 << 10),
    'sm_90': (64, 32, 228 << 10),
    'sm_100': (64, 32, 228 << 10),
    'sm_120': (48, 24, 100 << 10),
}
_BINARIES = Path(triton.__file__).parent / 'backends/nvidia/bin'


class Variant(NamedTuple):
    """One compilation: a kernel, its argument types and constants, and what its largest loop may cost.

    Attributes:
        options: of the compiler.
        elements: of one lane in one turn of the loop.
        budget: instructions per element and route, or None for no budget.
        specials: special functions per element and route, or None.
    """

    name: str
    kernel: object
    types: dict
    constants: dict
    options: dict
    elements: float
    budget: float | None = None
    specials: float | None = None


def shapes(archs) -> list[tuple[str, tuple[int, ...]]]:
    """Groups of kernels (keys of `GROUPS`) with the sizes that every stage of the architectures has of them, once each.

    The sizes are D, N, R of a scan, and D alone of what surrounds it.
    """
    found = set()
    for arch in archs:
        spec = ARCHS[arch]
        if arch in VMAMBAS:
            stages = [spec['embed_dims'] * 2**stage for stage in range(len(spec['depths']))]
            groups, ratio = ('ss2d', 'around ss2d'), spec['ssm_ratio']
        else:
            stages, groups, ratio = [spec['embed_dims']], ('short scan', 'around short scan'), spec['expand']
        for dims in stages:
            channels = int(dims * ratio)
            found.add((groups[0], (channels, spec['d_state'], -(-dims // 16))))
            found.add((groups[1], (channels,)))
            if arch.startswith('fastchannelvim'):
                found.add((f'{groups[1]} of planes', (channels,)))
    return sorted(found)


def _is_cuda(target: str) -> bool:
    return target.startswith('sm')


def _numerics(dtype: str, target: str) -> dict:
    """What `numerics.numerics` says on a machine with this GPU."""
    cuda, exact = _is_cuda(target), dtype == 'fp32'
    operand = 'bf16' if dtype == 'bf16' else 'fp32'
    precision = 'ieee' if not cuda else 'tf32x3' if exact else 'tf32'
    return dict(FAST=cuda, EXACT=exact, OPERAND=operand, PRECISION=precision)


def _types(kernel, constants, **half) -> dict:
    """Pointers are float32 unless named in `half`, `eps` and `scale` too, other arguments int32."""
    return {
        name: f'*{half.get(name, "fp32")}' if name.startswith('p_') else 'fp32' if name in ('eps', 'scale') else 'i32'
        for name in kernel.arg_names
        if name not in constants
    }


def _spec(D: int, N: int, R: int, dtype: str, target: str, walks: dict, **block) -> Spec:
    """What `scan.spec` says on a machine with this GPU."""
    arithmetic = _numerics(dtype, target)
    sizes = dict(D=D, N=N, R=R, RB=rank_block(R, N, arithmetic['OPERAND']), BL=BT, SOFTPLUS=True, LARGE=False)
    return Spec(**walks, **sizes, **block, **arithmetic)


def _scan_variant(name, kernel, spec: Spec, half: dict, absent, options, **figures) -> Variant:
    """One of the kernels that scan; `absent`: the pointers that it is called without."""
    constants = dict.fromkeys(absent) | dict(SPEC=spec)
    return Variant(name, kernel, _types(kernel, constants, **half), constants, options, **figures)


def scan_variants(D: int, N: int, R: int, dtype: str, target: str, walks=CROSS):
    """The scan's kernels for walks over D channels each."""
    exact, many = dtype == 'fp32', N > IN_REGISTERS
    half = dict.fromkeys(('p_projected', 'p_y', 'p_dx', 'p_dy'), 'bf16' if dtype == 'bf16' else 'fp32')
    half.update(p_x=dtype, p_steps='fp32' if R else dtype)
    block = scan_block(D, N, R, exact)
    budget = (30 if R <= 12 else 40) if N == 1 and not exact else None
    states = () if many else ('p_states',)
    for name, kernel, chunked, absent, limits in (
        ('forward one pass', chunk_scan.chunk_scan, False, states, dict(budget=budget, specials=2 + N)),
        ('forward chunk_state', chunk_state.chunk_state, True, (), dict(specials=2 + N)),
        ('forward chunk_scan', chunk_scan.chunk_scan, True, (), dict(budget=budget, specials=2 + N)),
        ('backward tile_state', tile_state.tile_state, False, states, {}),
        ('backward chunk_state', tile_state.chunk_state_bwd, True, (), {}),
    ):
        spec = _spec(D, N, R, dtype, target, walks, BD=block, VECTOR=block // 32, CHUNKED=chunked)
        options = scan.scan_options(N, exact, _is_cuda(target))
        yield _scan_variant(name, kernel, spec, half, absent, options, elements=BT * block / 32, **limits)
    for kernel in (state_passing.state_passing, state_passing.reverse_state_passing):
        constants = dict(K=walks['K'], D=D, N=N, BD=32)
        yield Variant(kernel.fn.__name__, kernel, _types(kernel, constants), constants, dict(num_warps=1), 1)

    block = scan_bwd_block(D, N)
    for chunked in (False, True):
        spec = _spec(D, N, R, dtype, target, walks, BD=block, VECTOR=1, CHUNKED=chunked)
        absent = () if chunked else ('p_tile_sums', 'p_states', 'p_adjoints') if not many else ('p_tile_sums',)
        yield _scan_variant(
            f'backward {"chunk_scan" if chunked else "one pass"}',
            chunk_scan_bwd.chunk_scan_bwd,
            *(spec, half, absent, scan_bwd.scan_bwd_options(block)),
            elements=BT,
            budget=110 if N == 1 and not exact else None,
        )
    yield _launched('collect', sums.collecting(walks['K'], D, N, 2, R), {}, sums.ELEMENTS)
    if walks is CROSS:
        route, elements = half['p_y'], sums.BLOCK / 32 / sums.WARPS
        for name, kinds, more in (
            ('sum of routes', dict(p_parts=route), False),
            ('sum of dx', dict(p_parts=route, p_more=route, p_y=dtype), True),
            ('sum of projections', dict(p_y=route), False),
        ):
            count = triton.cdiv(D, block) if name == 'sum of projections' else walks['K']
            yield _launched(name, sums.adding(count, sums.BLOCK, more), kinds, elements)


def _launched(name: str, launch, half: dict, elements: float) -> Variant:
    """A variant of a kernel whose launch does not depend on the device."""
    options = {key: value for key, value in launch.constants.items() if key not in launch.kernel.arg_names}
    constants = {key: value for key, value in launch.constants.items() if key not in options}
    return Variant(name, launch.kernel, _types(launch.kernel, constants, **half), constants, options, elements)


def norm_and_convolution_variants(D: int, dtype: str, target: str):
    """The kernels around SS2D's scan: convolution before it, normalisation after it."""
    route = 'bf16' if dtype == 'bf16' else 'fp32'
    half = dict.fromkeys(('p_x', 'p_y', 'p_dx', 'p_dy', 'p_dz', 'p_gate', 'p_dgate'), dtype)
    half.update(dict.fromkeys(('p_routes', 'p_sum', 'p_dsum'), route))
    blocks, options = triton_norm.tiling(D), launch_options(triton_norm.WARPS, _is_cuda(target))
    tile = blocks['BR'] * blocks['BD'] / 32 / options['num_warps']
    for gated in (False, True):
        constants = dict(D=D, **blocks, **({} if gated else dict(p_gate=None)))
        for name, kernel, extra in (
            ('norm', triton_norm.merge_norm, dict(K=4, p_sum=None)),
            ('norm with sum', triton_norm.merge_norm, dict(K=4)),
            ('norm backward', triton_norm.merge_norm_bwd, {} if gated else dict(p_dgate=None)),
        ):
            types = _types(kernel, dict(constants, **extra), **half)
            yield Variant(f'{name}{" gated" * gated}', kernel, types, dict(constants, **extra), options, tile)
    block = triton_conv.block_of(D)
    constants = dict(D=D, KS=3, U=triton_conv.U, BD=block, VECTOR=block // 32)
    for name, kernel in (
        ('convolution', triton_conv._conv_silu_fwd),
        ('convolution dx', triton_conv._conv_dx),
        ('convolution dz', triton_conv._conv_silu_bwd),
    ):
        elements = triton_conv.U * block / 32
        yield Variant(name, kernel, _types(kernel, constants, **half), constants, dict(num_warps=1), elements)
    yield _launched('convolution sums', sums.collecting(1, D, 9, 1), {}, sums.ELEMENTS)


def _pool_variants(D: int, dtype: str, planes: str | None = None):
    half = dict.fromkeys(('p_xz', 'p_dxz'), dtype)
    half['p_dy'] = 'bf16' if dtype == 'bf16' else 'fp32'
    size = 4 if dtype == 'fp32' else 2
    forward = dict(D=D, KS=4, **triton_pool.tiling(size), **({} if planes else NO_GROUPS))
    if planes == 'inner':
        kernel, tile = triton_pool._pool_planes_fwd, dict(forward, U=triton_pool.PLANES)
        no_ties = dict(p_largest=None, p_ties=None)
        kinds = [
            ('pool mean', kernel, dict(tile, MAX=False, **no_ties)),
            ('pool max', kernel, dict(tile, MAX=True, **no_ties)),
            ('pool max with ties', kernel, dict(tile, MAX=True)),
        ]
    else:
        kinds = [
            ('pool None', triton_pool._activate_fwd, forward),
            ('pool mean', triton_pool._pool_fwd, dict(forward, MAX=False)),
            ('pool max', triton_pool._pool_fwd, dict(forward, MAX=True)),
            ('pool max with ties', triton_pool._pool_max_fwd, forward),
        ]
    for pool, kernel in triton_pool_bwd.KERNELS.items():
        kind = dict(INTERLEAVED=planes == 'inner') if pool else {}
        if pool or planes != 'inner':  # where nothing is pooled both kinds of planes are the same kernels
            tiles = triton_pool_bwd.tiling(size, pool)
            kinds.append((f'pool {pool} backward', kernel, dict(forward, **kind) | tiles))
    for name, kernel, constants in kinds:
        types = _types(kernel, constants, **half)
        options = dict(num_warps=1, num_stages=1)
        name += f' of {planes} planes' if planes else ''
        yield Variant(name, kernel, types, constants, options, constants['U'] * constants['BD'] / 32)


GATES = {None: ('long lines', 'short lines', 'all tokens'), 'outer': ('long lines', 'all tokens'), 'inner': ('lines',)}
"""What a gate is a gate of, beside what kind of planes."""


def _gate_variants(D: int, dtype: str, target: str, planes: str | None = None):
    half = dict.fromkeys(('p_xz', 'p_dxz', 'p_dy', 'p_y'), dtype)
    half['p_dtokens'] = 'bf16' if dtype == 'bf16' else 'fp32'
    for tokens, norm in itertools.product(GATES[planes], (True, False)):
        name = f'gate of {tokens}{f" of {planes} planes" if planes else ""}{"" if norm else " without norm"}'
        pooled = tokens != 'all tokens'
        tiling, warps = triton_gate.tiling(D, pooled)
        options = launch_options(warps, _is_cuda(target))
        elements = tiling['U'] * tiling['TILES'] * tiling['BD'] / 32 / warps
        shared = dict(D=D, **({} if planes else NO_GROUPS))
        if pooled:
            shared.update(KS=4, LINES='interleaved' if planes == 'inner' else tokens.split()[0])
        if not norm:
            shared.update(p_norm_weight=None, p_norm_bias=None)
        kernel = triton_gate._gate_fwd if pooled else triton_gate._gate_tokens_fwd
        constants = dict(shared, **tiling)
        yield Variant(name, kernel, _types(kernel, constants, **half), constants, options, elements)
        if norm:
            kernel = triton_gate._gate_moments if pooled else triton_gate._gate_tokens_moments
            yield Variant(f'{name} moments', kernel, _types(kernel, constants, **half), constants, options, elements)
        kernel = triton_gate_bwd._gate_bwd if pooled else triton_gate_bwd._gate_tokens_bwd
        constants = dict(shared, BD=triton_gate_bwd.BLOCK, U=triton_gate_bwd.U)
        if planes == 'inner':
            kernel = triton_gate_bwd._gate_planes_bwd
            del constants['LINES']
        if not norm:
            constants.update(p_moments=None)
        size = constants['U'] * constants['BD'] / 32
        alone = launch_options(1, not norm and _is_cuda(target))
        yield Variant(f'{name} backward', kernel, _types(kernel, constants, **half), constants, alone, size)


def pool_and_gate_variants(D: int, dtype: str, target: str):
    """The kernels around the pooled scan's short sequences."""
    yield from _pool_variants(D, dtype)
    yield _launched('pool sums', sums.collecting(2, D, 4, 1), {}, sums.ELEMENTS)
    yield from _gate_variants(D, dtype, target)


def planes_variants(D: int, dtype: str, target: str):
    """The same for grids with planes."""
    for planes in ('inner', 'outer'):
        yield from _pool_variants(D, dtype, planes)
        yield from _gate_variants(D, dtype, target, planes)


def short_scan_variants(D: int, N: int, R: int, dtype: str, target: str):
    """The scan of the pooled scan's short sequences, which are float32 whatever the tokens are."""
    if dtype == 'fp32':
        yield from scan_variants(D, N, R if R <= triton_scan.WIDEST_RANK else 0, dtype, target, BOTH_WAYS)
        for zero in (False, True):
            plan = triton_stack.stacking(D, R, N, 4, zero)
            elements = triton_stack.BLOCK / 32 / triton_stack.WARPS
            yield _launched(f'stack{" without skips" * zero}', plan.launch, {}, elements)


GROUPS = {
    'ss2d': scan_variants,
    'around ss2d': norm_and_convolution_variants,
    'short scan': short_scan_variants,
    'around short scan': pool_and_gate_variants,
    'around short scan of planes': planes_variants,
}


def _source(variant: Variant) -> ASTSource:
    kernel = variant.kernel
    names = kernel.arg_names
    free = {p.name for p in kernel.params if p.do_not_specialize}
    attributes = {
        (i,): [['tt.divisibility', 16]]
        for i, name in enumerate(names)
        if name not in variant.constants and name not in free and name.startswith('p_')
    }
    signature = {name: variant.types.get(name, 'constexpr') for name in names}
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def _loop(listing: str, states: int) -> collections.Counter:
    """Instructions of the largest loop's body, or of everything if there is none, by mnemonic.

    Of the loops inside it those with special functions run once a state.
    """
    code, labels, spans = [], {}, []
    for line in listing.splitlines():
        if match := re.match(r'(\.L_x?_?\w+):', line):
            labels[match[1]] = len(code)
        elif match := re.match(r'\s+/\*[0-9a-f]+\*/\s+(.*?);', line):
            code.append(re.sub(r'^@!?U?P\w+\s+', '', match[1]))
    for i, instruction in enumerate(code):
        match = re.search(r'\bBRA\b.*?(\.L_x?_?\w+)', instruction)
        if match and labels.get(match[1], i) < i:
            spans.append((labels[match[1]], i))
    first, last = max(spans, key=lambda span: span[1] - span[0], default=(0, len(code) - 1))
    names = [instruction.split()[0].split('.')[0] for instruction in code]
    turns = [1] * len(code)
    for a, b in spans:
        if first <= a and b <= last and (a, b) != (first, last):
            turns[a : b + 1] = [states if 'MUFU' in names[a : b + 1] else 1] * (b + 1 - a)
    result = collections.Counter()
    for name, count in zip(names[first : last + 1], turns[first : last + 1], strict=True):
        result[name] += count
    return result


def _read(binary: bytes, states: int) -> dict:
    """Registers, spilled bytes and the largest loop of a CUDA binary."""
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(binary)
        file.flush()
        run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
        usage = run([_BINARIES / 'cuobjdump', '--dump-resource-usage', file.name]).stdout
        listing = run([_BINARIES / 'nvdisasm', '-c', file.name]).stdout
    registers, stack, local = (int(re.search(rf'{key}:(\d+)', usage)[1]) for key in ('REG', 'STACK', 'LOCAL'))
    return dict(registers=registers, spilled=stack + local, loop=dict(_loop(listing, states)))


def programs(target: str, registers: int, shared: int, warps: int) -> int:
    """How many programs a multiprocessor holds at a time: registers go to warps by 256, to programs by 4 warps."""
    most_warps, most, memory = MULTIPROCESSORS[target]
    of_registers = 65536 // (32 * 8 * -(-registers // 8)) // 4 * 4 // warps
    of_memory = memory // (1024 + 128 * -(-shared // 128))  # the system takes 1 KiB of each
    return min(most, most_warps // warps, of_registers, of_memory)


def measure(variant: Variant, target: str) -> dict:
    """Compile one variant and describe it; figures of the code only for CUDA, whose tools Triton brings."""
    row = dict(kernel=variant.name, target=target)
    sizes = variant.constants['SPEC']._asdict() if 'SPEC' in variant.constants else variant.constants
    row.update({k: sizes[k] for k in ('D', 'N', 'R') if k in sizes})
    compiled = triton.compile(_source(variant), target=TARGETS[target], options=variant.options)
    row.update(shared=compiled.metadata.shared, failures=[])
    if 'cubin' not in compiled.asm:
        text = compiled.asm['amdgcn']
        registers, spills = (
            max(map(int, re.findall(rf'\.{key}:\s+(\d+)', text)), default=0)
            for key in ('vgpr_count', 'vgpr_spill_count')
        )
        row.update(registers=registers, spilled=4 * spills)
    else:
        row.update(_read(compiled.asm['cubin'], row.get('N', 1)))
        row['programs'] = programs(target, row['registers'], row['shared'], compiled.metadata.num_warps)
        row['instructions'] = round(sum(row['loop'].values()) / variant.elements, 1)
        row['specials'] = round(row['loop'].get('MUFU', 0) / variant.elements, 2)
        if variant.budget is not None and target in BUDGETED and row['instructions'] > variant.budget:
            row['failures'].append(f'{row["instructions"]} instructions, budget {variant.budget}')
        if variant.specials is not None and row['specials'] > variant.specials:
            row['failures'].append(f'{row["specials"]} special functions, budget {variant.specials}')
    if row['spilled']:
        row['failures'].append(f'{row["spilled"]} bytes spilled')
    return row


def jobs(args):
    """Every (group, sizes, dtype, target, index of the variant) as plain values: workers build their own variant."""
    for target in args.targets:
        for dtype in args.dtypes:
            for group, sizes in shapes(args.archs):
                for i, _ in enumerate(GROUPS[group](*sizes, dtype, target)):
                    yield group, sizes, dtype, target, i


def work(job) -> dict:
    group, sizes, dtype, target, i = job
    variant = list(GROUPS[group](*sizes, dtype, target))[i]
    return dict(measure(variant, target), dtype=dtype)


def table(rows) -> Table:
    columns = ('kernel', 'target', 'dtype', 'D', 'N', 'R', 'registers', 'spilled', 'shared', 'programs', 'specials')
    columns = (*columns, 'instructions')
    result = Table(*columns, 'over budget', title='Ahead-of-time compilation; per element and route')
    for row in rows:
        result.add_row(*(str(row.get(name, '')) for name in columns), '; '.join(row['failures']))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--targets', nargs='+', choices=TARGETS, default=['sm_80', 'sm_90'])
    parser.add_argument('--archs', nargs='+', choices=ARCHS, default=list(ARCHS))
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=list(DTYPES))
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='processes')
    parser.add_argument('--json', type=Path, help='write the rows here as well')
    args = parser.parse_args()
    tasks = list(jobs(args))
    with ProcessPoolExecutor(args.jobs) as pool:
        results = pool.map(work, tasks)
        rows = list(track(results, 'compiling', len(tasks), console=Console(stderr=True)))
    Console(width=None if sys.stdout.isatty() else 160).print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return int(any(row['failures'] for row in rows))


if __name__ == '__main__':
    sys.exit(main())
