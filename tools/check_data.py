"""Say what is wrong with the data of a config, by file, before anything is trained.

In full: paths, class names against annotation files and heads, every entry of COCO annotation files, whether each image
and label file exists. In a sample, spread evenly over each data set (--samples): image files, label maps. train.py and
test.py look in the same way before they start.

Exit status: 0 nothing is wrong; 1 warnings: training leaves something out, or something looks odd; 2 train.py refuses.

Examples:
    python tools/check_data.py configs/demo/maskrcnn_vmamba_shapes.py
    python tools/check_data.py configs/upernet_vmamba_t.py --split train --samples 2000
"""

import argparse
import sys
import time

from mmvmamba.datasets import audit
from mmvmamba.engine import launch


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file')
    parser.add_argument(
        '--split', nargs='+', choices=('train', 'val', 'test'), default=['train', 'val', 'test'], help='default: all'
    )
    parser.add_argument(
        '--samples',
        type=int,
        default=audit.SAMPLES,
        metavar='N',
        help='image files and label maps of each data set to read (default: %(default)s)',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=launch.CfgOptions, metavar='KEY=VALUE', help='override entries of the config'
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        cfg = launch.load_config(arguments.config, arguments.cfg_options)
        launch.task_of(cfg)
    except (FileNotFoundError, ValueError) as error:
        print(f'check_data.py: {error}', file=sys.stderr)
        return 2
    start = time.process_time()
    report = audit.audit(cfg, tuple(arguments.split), arguments.samples)
    seconds = time.process_time() - start
    print('\n'.join([*report.lines(), f'{report.summary()} ({seconds:.1f} s of processor time)']))
    return 2 if report.of('error') else int(bool(report.of('warning')))


if __name__ == '__main__':
    sys.exit(main())
