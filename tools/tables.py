"""Write the tables of README.md and kernels/measured.md anew, from the files of kernels/measurements.

Example: python tools/benchmark.py cpu --json kernels/measurements/cpu.json && python tools/tables.py
"""

import argparse
import sys
from pathlib import Path

from mmvmamba.analysis import tables

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ('README.md', 'kernels/measured.md')
MEASUREMENTS = ROOT / 'kernels' / 'measurements'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing; exit with 1 if a document differs')
    arguments = parser.parse_args(argv)
    changed = []
    for name in DOCUMENTS:
        path = ROOT / name
        text = path.read_text(encoding='utf-8')
        new = tables.filled(text, MEASUREMENTS)
        if new != text:
            changed.append(name)
            if not arguments.check:
                path.write_text(new, encoding='utf-8')
    state = 'differs from kernels/measurements' if arguments.check else 'written'
    print('\n'.join(f'{name}: {state}' for name in changed) or 'all tables are as measured')
    return int(arguments.check and bool(changed))


if __name__ == '__main__':
    sys.exit(main())
