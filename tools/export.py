"""Export a config's model, for every image size, and check the file against PyTorch; exit code 1 where they differ.

The suffix of --out chooses: .onnx, or .pt2 for a program of torch.export (with --aot-inductor and --shape: compiled for
this CPU and one size).
Files of whole models take RGB images in 0..255, files of backbones normalised ones. Faster and Mask R-CNN (.onnx only)
take one image and give boxes, scores, labels and masks; what counts is how many instances differ from mmdet's.

Examples:
    python tools/export.py configs/upernet_vmamba_t.py CHECKPOINT --out upernet.onnx --check street.jpg
    python tools/export.py configs/maskrcnn_vmamba_t.py CHECKPOINT --out maskrcnn.onnx --check street.jpg
    python tools/export.py configs/cascade_fastvim_t.py CHECKPOINT --what backbone --out backbone.onnx
"""

import argparse
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from mmengine.registry import init_default_scope

from mmvmamba.checkpoints import reading
from mmvmamba.deploy import checking, exporting, modules
from mmvmamba.engine import launch


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', nargs='?', help='checkpoint file (default: fresh weights)')
    parser.add_argument('--out', required=True, type=Path, metavar='FILE', help='.onnx or .pt2')
    parser.add_argument('--what', choices=('backbone', 'model'), default='model', help='(default: %(default)s)')
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'), help='one image of this size only')
    sizes.add_argument(
        '--dynamic', action='store_true', help='any size, and any number of images but for detectors (the default)'
    )
    parser.add_argument(
        '--opset', type=int, default=exporting.DEFAULT_OPSET, help="version of ONNX's operators (default: %(default)s)"
    )
    parser.add_argument('--aot-inductor', action='store_true', help='compile the .pt2 for this CPU; needs --shape')
    parser.add_argument('--check', type=Path, metavar='IMAGE', help='compare on this image (default: random numbers)')
    launch.add_trust(parser)
    arguments = parser.parse_args(argv)
    if arguments.out.suffix not in ('.onnx', '.pt2'):
        parser.error(f'--out {arguments.out}: expected a file .onnx or .pt2')
    if arguments.aot_inductor and arguments.out.suffix != '.pt2':
        parser.error('--aot-inductor needs --out FILE.pt2')
    if arguments.aot_inductor and not arguments.shape:
        parser.error('--aot-inductor needs --shape H W: AOTInductor cannot compile our models for sizes that vary')
    return arguments


def _exportable(arguments: argparse.Namespace) -> modules.Exportable:
    cfg = launch.load_config(arguments.config)
    init_default_scope(launch.task_of(cfg))
    model = modules.build(cfg, arguments.checkpoint, arguments.trust_checkpoint)
    if not arguments.checkpoint:
        print('No checkpoint: the weights are fresh, the file is good for trying out only')
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    if arguments.checkpoint:  # it says what it was trained on, where a config may leave that to folders
        content = reading.open_source(arguments.checkpoint, arguments.trust_checkpoint)
        meta = content.get('meta') or {}
        dataset = {'metainfo': meta['dataset_meta']} if meta.get('dataset_meta') else dataset
    return modules.exportable(model, arguments.what, dataset)


def _write(arguments: argparse.Namespace, what: modules.Exportable) -> tuple[str, float]:
    """Write the file; returns its kind, see `checking.runner`, and how much its worst operator differs by itself."""
    shape = tuple(arguments.shape) if arguments.shape else None
    if arguments.out.suffix == '.onnx':
        return 'onnx', exporting.to_onnx(what, arguments.out, shape, arguments.opset)
    if arguments.aot_inductor:
        return 'package', exporting.to_package(what, arguments.out, shape)
    return 'program', exporting.to_program(what, arguments.out, shape)


def _need_packages(arguments: argparse.Namespace) -> None:
    """Before any work: what writing and checking an ONNX file imports."""
    missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if find_spec(name) is None]
    if arguments.out.suffix == '.onnx' and missing:
        raise ModuleNotFoundError(
            f'{arguments.out} needs {", ".join(missing)}, not installed here: pip install {" ".join(missing)}'
        )


def export(arguments: argparse.Namespace) -> int:
    """Export and check; returns the exit code."""
    _need_packages(arguments)
    image = None
    if arguments.check:
        from PIL import Image

        image = np.asarray(Image.open(arguments.check).convert('RGB'))
    what = _exportable(arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    kind, difference = _write(arguments, what)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in what.module.state_dict().values())
    size = os.path.getsize(arguments.out)
    print(
        f'{arguments.out}: {size / 1e6:.1f} MB ({size / weights:.2f} of the weights), outputs '
        f'{", ".join(what.outputs)}, exported in {time.perf_counter() - start:.0f} s'
    )
    print(f'operators   largest difference {difference:.1e} (allowed {checking.TOLERANCE:.0e}), each by itself')
    sizes = [tuple(arguments.shape)] if arguments.shape else checking.SIZES
    rows = checking.check(what, checking.runner(arguments.out, kind), sizes, image)
    for row in rows:
        measure = f'part that differs of {row.instances}' if row.instances else 'largest difference'
        print(
            f'{row.size[0]:>5} x {row.size[1]:<5} {measure} {row.difference:.1e} (allowed {row.allowed:.0e})  '
            f'{row.seconds * 1e3:8.0f} ms, PyTorch {row.torch_seconds * 1e3:.0f} ms'
        )
    wrong = difference > checking.TOLERANCE or not all(row.passed for row in rows)
    if wrong:
        print(f'export.py: {arguments.out} does not compute what the model does; do not use it', file=sys.stderr)
    return int(bool(wrong))


def main(argv: list[str] | None = None) -> int:
    try:
        return export(parse_arguments(argv))
    except (FileNotFoundError, ModuleNotFoundError, ValueError, RuntimeError) as error:
        print(f'export.py: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
