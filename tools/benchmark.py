"""Measure speed: ratios within one run, labelled with commit and device.

Example: python tools/benchmark.py kernels --arch tiny_s1l8 --height 224 --width 224
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch
from mmvmamba.kernels import BACKENDS

from mmvmamba.analysis import benchmark, kernel_benchmark, tables, traffic
from mmvmamba.analysis.record import result_of_tests
from mmvmamba.analysis.timing import machine
from mmvmamba.models.backbones.fastvim import ARCHS as FASTVIMS
from mmvmamba.models.backbones.vmamba import ARCHS as VMAMBAS

_MODULES = {'kernels': kernel_benchmark, 'traffic': traffic}


def _shape(text: str) -> tuple[int, int, int]:
    """'2x800x1280' as batch, height and width."""
    batch, height, width = map(int, text.split('x'))
    return batch, height, width


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--threads', type=int, help="PyTorch's threads (default: as it chooses)")
    common.add_argument('--repeat', type=int, default=5, help='measured rounds (default: %(default)s)')
    common.add_argument('--tests', type=Path, metavar='FILE', help="tests.json of gpu_check.sh: the tests' result here")
    common.add_argument('--json', type=Path, metavar='FILE', help='also write the rows and the machine to FILE')
    commands = parser.add_subparsers(dest='command', required=True)

    kernels = commands.add_parser(
        'kernels', parents=[common], help='ss2d_norm on every backend that can run here, beside what it replaces'
    )
    for name, default in (('height', 128), ('width', 128), ('channels', 96), ('states', 1), ('batch', 1)):
        kernels.add_argument(f'--{name}', type=int, default=default, help='(default: %(default)s)')
    kernels.add_argument('--arch', choices=VMAMBAS, help='all blocks of a VMamba on an image of HEIGHT x WIDTH pixels')
    kernels.add_argument('--dtype', choices=kernel_benchmark.DTYPES, default='fp32', help='(default: %(default)s)')
    kernels.add_argument('--backends', nargs='+', choices=BACKENDS, help='(default: all that can run here)')
    kernels.add_argument(
        '--no-compile', action='store_false', dest='compiled', help='leave torch.compile of the unfused pipeline out'
    )

    cpu = commands.add_parser('cpu', parents=[common], help='VMamba-T on the CPU beside Swin-T and without its scans')
    cpu.add_argument('--loop', action='store_true', help="also time the reference's loop over positions, once")
    cpu.add_argument('--loop-training', action='store_true', help='also a training step with that loop (minutes)')

    scaling = commands.add_parser('scaling', parents=[common], help='time and memory over image sizes, with a plot')
    scaling.add_argument('--sides', type=int, nargs='+', default=[256, 512, 1024, 1536, 2048], help='%(default)s')
    scaling.add_argument('--plot', type=Path, default=Path('work_dirs/scaling.png'), help='(default: %(default)s)')

    model = commands.add_parser(
        'model', parents=[common], help="configs' backbones beside Swin-T, ResNet-50 and ConvNeXt-T, with a plot"
    )
    model.add_argument('configs', nargs='+', metavar='CONFIG', help='config files')
    model.add_argument('--sides', type=int, nargs='+', default=[224, 384, 512, 768, 1024], help='%(default)s')
    model.add_argument('--plot', type=Path, default=Path('work_dirs/model.png'), help='(default: %(default)s)')
    model.add_argument('--batch', type=int, default=1, help='images at a time (default: %(default)s)')
    model.add_argument('--shapes', type=_shape, nargs='+', metavar='BxHxW', help='batch and size, not only squares')
    model.add_argument('--train', action='store_true', help='forward and backward instead of inference')
    model.add_argument('--amp', action='store_true', help='autocast to bfloat16')

    model.add_argument('--every', action='store_true', help='inference and training, each without and with --amp')

    profile = commands.add_parser('profile', parents=[common], help='where the time of the backbones goes on the CPU')
    for name, default in (('height', 800), ('width', 1280)):
        profile.add_argument(f'--{name}', type=int, default=default, help='(default: %(default)s)')

    pooled = commands.add_parser('pooled', parents=[common], help='FastVims beside pool=None, with a plot')
    pooled.add_argument('--archs', nargs='+', choices=FASTVIMS, default=['tiny'], help='(default: tiny)')
    pooled.add_argument('--amp', action='store_true', help='autocast to bfloat16')
    pooled.add_argument('--sides', type=int, nargs='+', default=[224, 512, 768, 1024], help='%(default)s')
    pooled.add_argument('--backend', default='auto', help='of the scans (default: %(default)s)')
    pooled.add_argument('--plot', type=Path, default=Path('work_dirs/pooled.png'), help='(default: %(default)s)')

    counted = commands.add_parser(
        'traffic', parents=[common], help="memory traffic of the Triton kernels, counted in Triton's interpreter"
    )
    counted.add_argument('operator', choices=traffic.GOALS, help='a forward pass in bf16')
    counted.add_argument('--arch', help='whose sizes (default: VMamba tiny_s1l8, FastVim tiny)')
    for name in ('height', 'width'):
        sides = ', '.join(f'{side} for {operator}' for operator, side in traffic.SIDES.items())
        counted.add_argument(f'--{name}', type=int, help=f'(default: {sides})')
    counted.add_argument('--batch', type=int, default=1, help='images (default: %(default)s)')
    counted.add_argument(
        '--multiprocessors',
        type=int,
        default=1,
        help='of the GPU, which decides how finely the work is cut (default: %(default)s, which with one image is the '
        'share of a multiprocessor of a GPU that a large batch fills)',
    )
    counted.add_argument('--pool', choices=traffic.POOLS, default='mean', help='(default: %(default)s)')
    arguments = parser.parse_args(argv)
    if arguments.command == 'traffic':
        _complete_traffic(counted, arguments)
    return arguments


def _complete_traffic(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Fill in what depends on the operator, and check it."""
    operator = arguments.operator
    known = {'ss2d': VMAMBAS, 'pooled_scan': FASTVIMS}[operator]
    arguments.arch = arguments.arch or traffic.ARCHS[operator]
    if arguments.arch not in known:
        parser.error(f'--arch {arguments.arch}: expected for {operator} one of {", ".join(known)}')
    for name in ('height', 'width', 'batch', 'multiprocessors'):
        value = getattr(arguments, name)
        if value is None:
            setattr(arguments, name, traffic.SIDES[operator])
        elif value < 1:
            parser.error(f'--{name} {value}: expected 1 or more')


def main(argv: list[str] | None = None) -> int:
    arguments = vars(parse_arguments(argv))
    command, threads, tests, json_file = (arguments.pop(key) for key in ('command', 'threads', 'tests', 'json'))
    if threads:
        torch.set_num_threads(threads)
    if command == 'traffic':
        del arguments['repeat']  # what is counted is the same every time
    try:
        rows = getattr(_MODULES.get(command, benchmark), command)(**arguments)
    except (FileNotFoundError, ImportError, ValueError) as error:
        print(f'benchmark.py: {error}', file=sys.stderr)
        return 2
    about = machine()  # at once, as long as the clocks are those of the measurement
    about |= {'TF32': str(torch.backends.cuda.matmul.allow_tf32), 'tests': result_of_tests(about, tests)}
    print(', '.join(f'{key}: {value}' for key, value in about.items()))
    print(f'{command}: ' + ', '.join(f'{key} {value}' for key, value in arguments.items()))
    print(tables.markdown(rows))
    if json_file:
        line = shlex.join(['python', 'tools/benchmark.py', *(sys.argv[1:] if argv is None else argv)])
        found = {'machine': about, 'command': line, 'arguments': arguments, 'rows': rows}
        json_file.write_text(json.dumps(found, indent=2, default=str))
    return 0


if __name__ == '__main__':
    sys.exit(main())
