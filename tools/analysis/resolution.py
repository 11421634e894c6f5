"""Top-1 of a trained classifier over test sizes, without fine-tuning and with a new linear layer for each size.

The published protocol: short side to int(256 / 224 * size), bicubic, centre crop; the weights stay. Published figures
(VMamba's paper, ImageNet-1K) stand beside where the papers have the model; they are not ours.

Examples:
    python tools/analysis/resolution.py configs/demo/vmamba_shapes_cls.py CHECKPOINT --sides 64 96 128
    python tools/analysis/resolution.py configs/demo/vmamba_shapes_cls.py CHECKPOINT --sides 64 96 --linear-probe
"""

import argparse
import sys

from mmvmamba import checkpoints
from mmvmamba.analysis import resolution, tables
from mmvmamba.engine import launch


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file of a classifier')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint file, or mmvmamba://NAME')
    parser.add_argument(
        '--sides', type=int, nargs='+', default=list(resolution.SIDES), help='of the crops (default: %(default)s)'
    )
    parser.add_argument('--linear-probe', action='store_true', help='train a new linear layer at each size, too')
    parser.add_argument('--epochs', type=int, default=30, help='of the linear layer (default: %(default)s)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=launch.CfgOptions, metavar='KEY=VALUE', help='override entries of the config'
    )
    launch.add_trust(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    trust = arguments.trust_checkpoint
    try:
        cfg = launch.load_config(arguments.config, arguments.cfg_options)
        if launch.task_of(cfg) != 'mmpretrain':
            raise ValueError(f"{arguments.config} is no classifier: expected default_scope='mmpretrain'")
        launch.prepare(cfg, 'none', None)
        launch.check_data(cfg, ('train', 'test') if arguments.linear_probe else ('test',))
        for note in launch.check_names(cfg, 'test', checkpoints.class_names(arguments.checkpoint, trust=trust)):
            print(f'resolution.py: {note}', file=sys.stderr)
        model = resolution.load(cfg, arguments.checkpoint, trust)
        rows = resolution.over_sizes(model, cfg, arguments.sides, arguments.linear_probe, arguments.epochs)
    except (FileNotFoundError, ValueError) as error:
        print(f'resolution.py: {error}', file=sys.stderr)
        return 2
    print(tables.markdown(rows))
    return 0


if __name__ == '__main__':
    sys.exit(main())
