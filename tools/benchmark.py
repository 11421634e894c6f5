"""Measure speed: ratios within one run, labelled with commit and device.

Examples:
    python tools/benchmark.py kernels --arch tiny_s1l8 --height 224 --width 224
    python tools/benchmark.py scale configs/demo/vmamba_shapes_cls.py --sides 224 288 --rivals Swin-T ResNet-50
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch
from mmvmamba.kernels import BACKENDS

from mmvmamba.analysis import (
    benchmark,
    classifier_benchmark,
    export_benchmark,
    kernel_benchmark,
    operator_benchmark,
    tables,
    traffic,
)
from mmvmamba.analysis.record import result_of_tests
from mmvmamba.analysis.timing import machine
from mmvmamba.models.backbones.fastvim import ARCHS as FASTVIMS
from mmvmamba.models.backbones.vmamba import ARCHS as VMAMBAS

_MODULES = {
    'kernels': kernel_benchmark,
    'operators': operator_benchmark,
    'traffic': traffic,
    'export': export_benchmark,
    **dict.fromkeys(('scale', 'routes', 'ssm_init'), classifier_benchmark),
}


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
    for name, (text, add) in _COMMANDS.items():
        add(commands.add_parser(name, parents=[common], help=text))
    arguments = parser.parse_args(argv)
    if arguments.command == 'traffic':
        _complete_traffic(parser, arguments)
    return arguments


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    for name, default in (('height', 128), ('width', 128), ('channels', 96), ('states', 1), ('batch', 1)):
        parser.add_argument(f'--{name}', type=int, default=default, help='(default: %(default)s)')
    parser.add_argument('--arch', choices=VMAMBAS, help='all blocks of a VMamba on an image of HEIGHT x WIDTH pixels')
    parser.add_argument('--dtype', choices=kernel_benchmark.DTYPES, default='fp32', help='(default: %(default)s)')
    parser.add_argument('--backends', nargs='+', choices=BACKENDS, help='(default: all that can run here)')
    parser.add_argument(
        '--no-compile', action='store_false', dest='compiled', help='leave torch.compile of the unfused pipeline out'
    )


def _add_operators(parser: argparse.ArgumentParser) -> None:
    cases = list(operator_benchmark.CASES)
    parser.add_argument('--names', nargs='+', choices=cases, default=cases, help='(default: all)')
    for name, default in (('batch', 1), ('side', 56), ('channels', 96)):
        parser.add_argument(f'--{name}', type=int, default=default, help='(default: %(default)s)')
    parser.add_argument('--dtype', choices=kernel_benchmark.DTYPES, default='fp32', help='(default: %(default)s)')


def _add_cpu(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--loop', action='store_true', help="also time the reference's loop over positions, once")
    parser.add_argument('--loop-training', action='store_true', help='also a training step with that loop (minutes)')


def _add_sides(parser: argparse.ArgumentParser, plot: str, sides: list[int]) -> None:
    parser.add_argument('--sides', type=int, nargs='+', default=sides, help='of the images (default: %(default)s)')
    parser.add_argument('--plot', type=Path, default=Path(plot), help='(default: %(default)s)')


def _add_scaling(parser: argparse.ArgumentParser) -> None:
    _add_sides(parser, 'work_dirs/scaling.png', [256, 512, 1024, 1536, 2048])


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config files')
    _add_sides(parser, 'work_dirs/model.png', [224, 384, 512, 768, 1024])
    parser.add_argument('--batch', type=int, default=1, help='images at a time (default: %(default)s)')
    parser.add_argument('--shapes', type=_shape, nargs='+', metavar='BxHxW', help='batch and size, not only squares')
    parser.add_argument('--train', action='store_true', help='forward and backward instead of inference')
    parser.add_argument('--amp', action='store_true', help='autocast to bfloat16')
    parser.add_argument('--every', action='store_true', help='inference and training, each without and with --amp')


def _add_scale(parser: argparse.ArgumentParser) -> None:
    rivals = list(classifier_benchmark.RIVALS)
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config files of classifiers')
    _add_sides(parser, 'work_dirs/scale.png', [224, 288, 384, 512, 640, 768])
    parser.add_argument('--batch', type=int, default=1, help='images at a time (default: %(default)s)')
    parser.add_argument(
        '--rivals', nargs='*', choices=rivals, default=rivals, help="mmpretrain's to run beside (default: all of them)"
    )
    parser.add_argument('--vim', action='store_true', help='beside every FastVim the same network scanning every token')
    parser.add_argument('--no-training', action='store_false', dest='training', help='inference only')
    parser.add_argument('--amp', action='store_true', help='train under autocast to bfloat16')


def _add_ablation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--side', type=int, default=224, help='of the images (default: %(default)s)')
    parser.add_argument('--batch', type=int, default=1, help='images at a time (default: %(default)s)')


def _add_profile(parser: argparse.ArgumentParser) -> None:
    for name, default in (('height', 800), ('width', 1280)):
        parser.add_argument(f'--{name}', type=int, default=default, help='(default: %(default)s)')


def _add_pooled(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--archs', nargs='+', choices=FASTVIMS, default=['tiny'], help='(default: tiny)')
    parser.add_argument('--amp', action='store_true', help='autocast to bfloat16')
    _add_sides(parser, 'work_dirs/pooled.png', [224, 512, 768, 1024])
    parser.add_argument('--backend', default='auto', help='of the scans (default: %(default)s)')
    parser.add_argument('--channels', type=int, nargs='+', help='of images: FastChannelVim beside ChannelVim')
    parser.add_argument('--alone', action='store_true', help='the pooled networks only')


def _add_export(parser: argparse.ArgumentParser) -> None:
    known = list(export_benchmark.BACKBONES)
    parser.add_argument('--models', nargs='+', choices=known, default=known, help='(default: all)')


def _add_traffic(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('operator', choices=traffic.GOALS, help='a forward pass in bf16')
    parser.add_argument('--arch', help='whose sizes (default: VMamba tiny_s1l8, FastVim tiny)')
    for name in ('height', 'width'):
        sides = ', '.join(f'{side} for {operator}' for operator, side in traffic.SIDES.items())
        parser.add_argument(f'--{name}', type=int, help=f'(default: {sides})')
    parser.add_argument('--batch', type=int, default=1, help='images (default: %(default)s)')
    parser.add_argument(
        '--multiprocessors',
        type=int,
        default=1,
        help='of the GPU, which decides how finely the work is cut (default: %(default)s, which with one image is the '
        'share of a multiprocessor of a GPU that a large batch fills)',
    )
    parser.add_argument('--pool', choices=traffic.POOLS, default='mean', help='(default: %(default)s)')


_COMMANDS = {
    'kernels': ('ss2d_norm on every backend that can run here, beside what it replaces', _add_kernels),
    'operators': ('every operator on every backend, forward and with gradients', _add_operators),
    'cpu': ('VMamba-T on the CPU beside Swin-T and without its scans', _add_cpu),
    'scaling': ('time and memory over image sizes, with a plot', _add_scaling),
    'model': ("configs' backbones beside Swin-T, ResNet-50 and ConvNeXt-T, with a plot", _add_model),
    'scale': (
        "configs' classifiers over image sizes beside mmpretrain's and published figures, with a plot",
        _add_scale,
    ),
    'routes': ('VMamba-T with every pattern of routes beside published figures', _add_ablation),
    'ssm_init': ('VMamba-T with every initialisation of its scans beside published figures', _add_ablation),
    'profile': ('where the time of the backbones goes on the CPU', _add_profile),
    'pooled': ('FastVims, or FastChannelVims, beside what scans every token, with a plot', _add_pooled),
    'export': ('backbones in onnxruntime beside PyTorch on the CPU: exactness, size, time, memory', _add_export),
    'traffic': ("memory traffic of the Triton kernels, counted in Triton's interpreter", _add_traffic),
}


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
