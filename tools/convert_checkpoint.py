"""Turn published weights into a file that every loader understands: our names, nothing but parameters.

IN may be anything that `mmvmamba.checkpoints.load` takes: a classifier, a detector or a segmentor, old names, a URL.
OUT is a folder or a file name; the file's name gets a hash of its content.

Examples:
    python tools/convert_checkpoint.py vssm1_tiny_0230s_ckpt_epoch_264.pth weights/vmamba_tiny_s1l8.safetensors
    python tools/convert_checkpoint.py vssmtiny_dp01_ckpt_epoch_292.pth weights --arch tiny_v0
"""

import argparse
import hashlib
import importlib.util
import sys
from pathlib import Path

import torch

from mmvmamba import checkpoints
from mmvmamba.engine import launch
from mmvmamba.models import FastVim, VMamba

FAMILIES = {cls.family: cls for cls in (VMamba, FastVim)}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='IN', help='checkpoint file, URL, or mmvmamba://NAME')
    parser.add_argument('out', metavar='OUT', type=Path, help='folder, or file name ending in .safetensors or .pth')
    parser.add_argument('--arch', help='architecture of the backbone (default: as the shapes tell)')
    parser.add_argument(
        '--container',
        metavar='NAME',
        help='entry of the file to take, such as model_ema (default: what published readers take)',
    )
    launch.add_trust(parser)
    return parser.parse_args(argv)


def convert(source: str, out: Path, arch: str | None, trust: bool = False, container: str | None = None) -> Path:
    """Load a backbone strictly, save it; returns the file written.

    Raises:
        FileNotFoundError, CheckpointError: see `checkpoints.load`.
        ValueError: an architecture that is unknown or cannot be told, or another kind of file.
    """
    suffix = out.suffix or '.safetensors'
    if suffix not in ('.safetensors', '.pth'):
        raise ValueError(f'OUT {out}: expected a folder or a name ending in .safetensors or .pth')
    if suffix == '.safetensors' and importlib.util.find_spec('safetensors') is None:
        raise ValueError(f'OUT {out}: safetensors is not installed; pip install safetensors, or write a .pth file')
    family, found = checkpoints.recognise(source, trust=trust, container=container)
    arch = arch or found
    model = FAMILIES[family](arch)
    report = checkpoints.load(source, model, trust=trust, container=container)
    print(report)
    if report.fresh:
        print(f'{len(report.fresh)} output norms have no weights in a classifier; a detector trains them')
    state_dict = {name: value.contiguous() for name, value in model.state_dict().items() if name not in report.fresh}
    digest = hashlib.sha256()
    for name, value in sorted(state_dict.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    folder, stem = (out.parent, out.stem) if out.suffix else (out, f'{family}_{arch}')
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{stem}-{digest.hexdigest()[:8]}{suffix}'
    if suffix == '.pth':
        torch.save({'meta': {'arch': arch, 'source': Path(source).name}, 'state_dict': state_dict}, path)
    else:
        from safetensors.torch import save_file

        save_file(state_dict, path, metadata={'arch': arch, 'source': Path(source).name})
    return path


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        path = convert(arguments.source, arguments.out, arguments.arch, arguments.trust_checkpoint, arguments.container)
    except (FileNotFoundError, ValueError) as error:
        print(f'convert_checkpoint.py: {error}', file=sys.stderr)
        return 2
    print(f'written: {path}')
    print(f'use: --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint={path}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
