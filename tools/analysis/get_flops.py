"""Count a config's parameters and FLOPs for one image size, without a dataset.

Examples:
    python tools/analysis/get_flops.py configs/maskrcnn_vmamba_t.py --shape 1280 800
    python tools/analysis/get_flops.py configs/upernet_vmamba_t.py --shape 512 2048
    python tools/analysis/get_flops.py configs/imagenet/vmamba_t.py
"""

import argparse
import sys

from mmvmamba.analysis import flops
from mmvmamba.engine import launch


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file')
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'), help='(default: 224 224 of a classifier, else 800 1280)'
    )
    arguments = parser.parse_args(argv)
    try:
        cfg = launch.load_config(arguments.config)
        classifies = launch.task_of(cfg) == 'mmpretrain'
        launch.prepare(cfg, 'none', None)
    except (FileNotFoundError, ValueError) as error:
        print(f'get_flops.py: {error}', file=sys.stderr)
        return 2
    height, width = arguments.shape or ((224, 224) if classifies else (800, 1280))
    counted = flops.of_config(cfg, height, width)
    print(f'{arguments.config} at {height} x {width}')
    print(f'parameters: {counted.parameters:,}')
    print(f'FLOPs: {counted.flops / 1e9:.2f} G (one multiply-add is 1)')
    for name, count in counted.by_operator.most_common():
        print(f'  {name}: {count / 1e9:.2f} G')
    listed = ', '.join(f'{name} ({count})' for name, count in counted.not_counted.most_common())
    print(f'operators without a rule, counted as 0: {listed or "none"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
