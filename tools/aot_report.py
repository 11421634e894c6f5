"""Compile every Triton kernel ahead of time, without a GPU, and read its machine code.

    python tools/aot_report.py                     # sm_80 and sm_90, every shape that a published VMamba uses
    python tools/aot_report.py --targets sm_90 --archs tiny_s1l8 --json report.json

One row a kernel, variant and target: registers, bytes spilled, shared memory, and of the largest loop the instructions
and special functions per element and route. Exits with 1 if a kernel spills or exceeds a stated budget.
"""

import argparse
import collections
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import triton
from mmvmamba.kernels import triton_bwd, triton_fwd
from mmvmamba.kernels.depthwise_conv import triton_conv
from mmvmamba.kernels.ss2d import triton_norm
from mmvmamba.kernels.triton_math import BT, padded
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmvmamba.models.backbones.vmamba import ARCHS

TARGETS = {
    'sm_80': GPUTarget('cuda', 80, 32),
    'sm_90': GPUTarget('cuda', 90, 32),
    'sm_120': GPUTarget('cuda', 120, 32),
    'gfx942': GPUTarget('hip', 'gfx942', 64),
}
DTYPES = {'bf16': 'bf16', 'fp16': 'fp16', 'fp32': 'fp32'}
CROSS = dict(COLUMNS=0b1010, REVERSES=0b1100, KEEPS=0)
_BINARIES = Path(triton.__file__).parent / 'backends/nvidia/bin'


class Variant(NamedTuple):
    """One compilation: a kernel, its argument types and constants, and what its largest loop may cost.

    Attributes:
        elements: of one lane in one turn of the loop.
        stages: of the software pipeline.
        budget: instructions per element and route, or None for no budget.
        specials: special functions per element and route, or None.
    """

    name: str
    kernel: object
    types: dict
    constants: dict
    warps: int
    elements: float
    stages: int = 1
    budget: float | None = None
    specials: float | None = None


def shapes(archs) -> list[tuple[int, int, int]]:
    """D, N, R of every stage of the architectures."""
    found = set()
    for arch in archs:
        spec = ARCHS[arch]
        for stage in range(len(spec['depths'])):
            dims = spec['embed_dims'] * 2**stage
            found.add((int(dims * spec['ssm_ratio']), spec['d_state'], -(-dims // 16)))
    return sorted(found)


def _numerics(dtype: str, target: str) -> dict:
    """What `triton_math.numerics` says on a machine with this GPU."""
    cuda, exact = target.startswith('sm'), dtype == 'fp32'
    return dict(FAST=cuda, EXACT=exact, PRECISION='ieee' if not cuda else 'tf32x3' if exact else 'tf32')


def _types(kernel, constants, **half) -> dict:
    """Pointers are float32 unless named in `half`, other arguments int32."""
    return {
        name: f'*{half.get(name, "fp32")}' if name.startswith('p_') else 'i32'
        for name in kernel.arg_names
        if name not in constants
    }


def scan_variants(D: int, N: int, R: int, dtype: str, target: str):
    """The scan's kernels for four routes over D channels."""
    block = triton_fwd.block_of(N, R, dtype == 'fp32')
    shared = dict(
        **dict(K=4, D=D, N=N, R=R, RP=padded(R), GROUPED=False, SOFTPLUS=True, BT=BT, LONG_LINES=True, LARGE=False),
        **CROSS,
        **_numerics(dtype, target),
    )
    half = dict.fromkeys(('p_x', 'p_projected', 'p_ready'), dtype)
    half['p_y'] = 'bf16' if dtype == 'bf16' else 'fp32'
    for label, summary, starts in (('one pass', False, False), ('summary', True, False), ('replay', False, True)):
        constants = dict(shared, BD=block, SUMMARY=summary, STARTS=starts)
        yield Variant(
            f'forward {label}',
            triton_fwd._walk,
            _types(triton_fwd._walk, constants, **half),
            constants,
            warps=1,
            elements=BT * block / 32,
            budget=(30 if R <= 12 else 40) if N == 1 and not summary and dtype != 'fp32' else None,
            specials=2 + N,
        )
    constants = dict(K=4, D=D, N=N, BACK=False, BD=32)
    yield Variant('carry', triton_fwd._carry, _types(triton_fwd._carry, constants), constants, warps=1, elements=1)

    block = triton_bwd.block_of(N, R, dtype == 'fp32')
    for label, kernel in (('prepare', triton_bwd._prepare), ('walk', triton_bwd._walk_back)):
        for chunked in (False, True):
            half = dict.fromkeys(('p_x', 'p_projected', 'p_ready'), dtype)
            half['p_dx'] = 'bf16' if dtype == 'bf16' else 'fp32'
            constants = dict(shared, BD=block, CHUNKED=chunked)
            if label == 'walk':
                constants.update(RB=triton_bwd.RANK_BLOCK, CP=padded(2 * N))
            yield Variant(
                f'backward {label}{" chunked" * chunked}',
                kernel,
                _types(kernel, constants, **half),
                constants,
                warps=1,
                elements=BT * block / 32,
                budget=110 if N == 1 and dtype != 'fp32' and label == 'walk' else None,
            )


def other_variants(D: int, dtype: str, target: str):
    """The kernels around the scan: convolution before it, normalisation after it."""
    route = 'bf16' if dtype == 'bf16' else 'fp32'
    half = dict.fromkeys(('p_x', 'p_y', 'p_dy', 'p_dz', 'p_gate', 'p_dgate'), dtype)
    half.update(dict.fromkeys(('p_routes', 'p_sum', 'p_dsum'), route))
    blocks = triton_norm._blocks(D)
    warps = blocks.pop('num_warps')
    tile = blocks['BR'] * blocks['BD'] / 32 / warps
    for gated in (False, True):
        constants = dict(D=D, GATED=gated, **blocks)
        for name, kernel, extra in (
            ('norm', triton_norm._normalise, dict(K=4)),
            ('norm backward', triton_norm._differentiate, {}),
        ):
            types = dict(_types(kernel, dict(constants, **extra), **half), eps='fp32')
            yield Variant(f'{name}{" gated" * gated}', kernel, types, dict(constants, **extra), warps, tile)
    constants = dict(D=D, KS=3, BIAS=True, BP=triton_conv.BP, BD=triton_conv.BD)
    for name, kernel, extra in (
        ('convolution', triton_conv._convolve, dict(FORWARD=True)),
        ('convolution dx', triton_conv._convolve, dict(FORWARD=False, BIAS=False)),
        ('convolution dz', triton_conv._differentiate, dict(BP=triton_conv.BP_BACK)),
    ):
        chosen = dict(constants, **extra)
        elements = chosen['BP'] * chosen['BD'] / 32
        yield Variant(name, kernel, _types(kernel, chosen, **half), chosen, 1, elements)


def variants(D: int, N: int, R: int, dtype: str, target: str):
    yield from scan_variants(D, N, R, dtype, target)
    yield from other_variants(D, dtype, target)


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


def _loop(listing: str, states: int, ranks: int) -> collections.Counter:
    """Instructions of the largest loop's body, or of everything if there is none, by mnemonic.

    Of the loops inside it those with special functions run once a state, the others once a block of ranks.
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
            turns[a : b + 1] = [max(1, states if 'MUFU' in names[a : b + 1] else ranks)] * (b + 1 - a)
    result = collections.Counter()
    for name, count in zip(names[first : last + 1], turns[first : last + 1], strict=True):
        result[name] += count
    return result


def _read(binary: bytes, states: int, ranks: int) -> dict:
    """Registers, spilled bytes and the largest loop of a CUDA binary."""
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(binary)
        file.flush()
        run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
        usage = run([_BINARIES / 'cuobjdump', '--dump-resource-usage', file.name]).stdout
        listing = run([_BINARIES / 'nvdisasm', '-c', file.name]).stdout
    registers, stack, local = (int(re.search(rf'{key}:(\d+)', usage)[1]) for key in ('REG', 'STACK', 'LOCAL'))
    return dict(registers=registers, spilled=stack + local, loop=dict(_loop(listing, states, ranks)))


def measure(variant: Variant, target: str) -> dict:
    """Compile one variant and describe it; figures of the code only for CUDA, whose tools Triton brings."""
    row = dict(kernel=variant.name, target=target, **{k: variant.constants.get(k) for k in ('D', 'N', 'R')})
    options = dict(num_warps=variant.warps, num_stages=variant.stages)
    compiled = triton.compile(_source(variant), target=TARGETS[target], options=options)
    row.update(shared=compiled.metadata.shared, failures=[])
    if 'cubin' not in compiled.asm:
        text = compiled.asm['amdgcn']
        registers, spills = (
            max(map(int, re.findall(rf'\.{key}:\s+(\d+)', text)), default=0)
            for key in ('vgpr_count', 'vgpr_spill_count')
        )
        row.update(registers=registers, spilled=4 * spills)
    else:
        ranks = -(-(row['R'] or 0) // triton_bwd.RANK_BLOCK)
        row.update(_read(compiled.asm['cubin'], row['N'] or 1, ranks))
        row['instructions'] = round(sum(row['loop'].values()) / variant.elements, 1)
        row['specials'] = round(row['loop'].get('MUFU', 0) / variant.elements, 2)
        if variant.budget is not None and row['instructions'] > variant.budget:
            row['failures'].append(f'{row["instructions"]} instructions, budget {variant.budget}')
        if variant.specials is not None and row['specials'] > variant.specials:
            row['failures'].append(f'{row["specials"]} special functions, budget {variant.specials}')
    if row['spilled']:
        row['failures'].append(f'{row["spilled"]} bytes spilled')
    return row


def jobs(args):
    """Every (shape, dtype, target, index of the variant) as plain values, so that workers can build their own."""
    for target in args.targets:
        for dtype in args.dtypes:
            for D, N, R in shapes(args.archs):
                for i, _ in enumerate(variants(D, N, R, dtype, target)):
                    yield D, N, R, dtype, target, i


def work(job) -> dict:
    D, N, R, dtype, target, i = job
    variant = list(variants(D, N, R, dtype, target))[i]
    return dict(measure(variant, target), dtype=dtype, D=D, N=N, R=R)


def table(rows) -> Table:
    columns = ('kernel', 'target', 'dtype', 'D', 'N', 'R', 'registers', 'spilled', 'shared', 'specials', 'instructions')
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
    with ProcessPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(work, jobs(args)))
    Console(width=None if sys.stdout.isatty() else 160).print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return int(any(row['failures'] for row in rows))


if __name__ == '__main__':
    sys.exit(main())
