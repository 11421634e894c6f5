"""Measure speed: ratios within one run, labelled with commit and device.

Example: python tools/benchmark.py kernels --height 200 --width 320
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from mmvmamba.analysis import benchmark
from mmvmamba.analysis.timing import machine


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--threads', type=int, help="PyTorch's threads (default: as it chooses)")
    common.add_argument('--repeat', type=int, default=5, help='measured rounds (default: %(default)s)')
    common.add_argument('--json', type=Path, metavar='FILE', help='also write the rows and the machine to FILE')
    commands = parser.add_subparsers(dest='command', required=True)

    kernels = commands.add_parser('kernels', parents=[common], help='ss2d on every backend that can run here')
    for name, default in (('height', 128), ('width', 128), ('channels', 96), ('states', 1), ('batch', 1)):
        kernels.add_argument(f'--{name}', type=int, default=default, help='(default: %(default)s)')
    kernels.add_argument('--backward', action='store_true', help='time forward and backward together')

    cpu = commands.add_parser('cpu', parents=[common], help='VMamba-T on the CPU beside Swin-T and without its scans')
    cpu.add_argument('--loop', action='store_true', help="also time the reference's loop over positions, once")
    cpu.add_argument('--loop-training', action='store_true', help='also a training step with that loop (minutes)')

    scaling = commands.add_parser('scaling', parents=[common], help='time and memory over image sizes, with a plot')
    scaling.add_argument('--sides', type=int, nargs='+', default=[256, 512, 1024, 1536, 2048], help='%(default)s')
    scaling.add_argument('--plot', type=Path, default=Path('work_dirs/scaling.png'), help='(default: %(default)s)')

    model = commands.add_parser('model', parents=[common], help="configs' backbones beside Swin-T and ResNet-50")
    model.add_argument('configs', nargs='+', metavar='CONFIG', help='config files')
    model.add_argument('--sides', type=int, nargs='+', default=[224, 512], help='%(default)s')
    model.add_argument('--batch', type=int, default=1, help='images at a time (default: %(default)s)')
    model.add_argument('--train', action='store_true', help='forward and backward instead of inference')
    model.add_argument('--amp', action='store_true', help='autocast to bfloat16')

    profile = commands.add_parser('profile', parents=[common], help='where the time of the backbones goes on the CPU')
    for name, default in (('height', 800), ('width', 1280)):
        profile.add_argument(f'--{name}', type=int, default=default, help='(default: %(default)s)')

    pooled = commands.add_parser('pooled', parents=[common], help='FastVim-T beside pool=None, with a plot')
    pooled.add_argument('--sides', type=int, nargs='+', default=[224, 512, 768, 1024], help='%(default)s')
    pooled.add_argument('--backend', default='auto', help='of the scans (default: %(default)s)')
    pooled.add_argument('--plot', type=Path, default=Path('work_dirs/pooled.png'), help='(default: %(default)s)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = vars(parse_arguments(argv))
    command, threads, json_file = (arguments.pop(key) for key in ('command', 'threads', 'json'))
    if threads:
        torch.set_num_threads(threads)
    rows = getattr(benchmark, command)(**arguments)
    about = machine() | {'TF32': str(torch.backends.cuda.matmul.allow_tf32)}
    print(', '.join(f'{key}: {value}' for key, value in about.items()))
    print(f'{command}: ' + ', '.join(f'{key} {value}' for key, value in arguments.items()))
    print(benchmark.markdown(rows))
    if json_file:
        json_file.write_text(json.dumps({'machine': about, 'arguments': arguments, 'rows': rows}, indent=2))
    return 0


if __name__ == '__main__':
    sys.exit(main())
