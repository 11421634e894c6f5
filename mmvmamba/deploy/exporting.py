"""Files from modules: ONNX, an exported program of PyTorch's, an AOTInductor package. One file serves all sizes."""

import contextlib
import logging
import warnings
from pathlib import Path

import torch

from mmvmamba.kernels import dispatch

from . import alone, regions
from .modules import Exportable
from .operators import Functions

DEFAULT_OPSET = 20
TRACED = (2, 96, 160)
"""Images, height, width of the sample that is traced where sizes are dynamic: no size of any stage repeats or is 1."""

TRACED_ALONE = (1, 101, 163)
"""The same for detectors, which pad an image to what their network takes: sides that are padded."""

OLDEST_TORCH = (2, 13)
"""Older ones were not tried."""


def to_onnx(
    what: Exportable, path: str | Path, shape: tuple[int, int] | None = None, opset: int = DEFAULT_OPSET
) -> float:
    """Write one ONNX file.

    Args:
        what: see `exportable`.
        path: of the file.
        shape: (H, W) of the only size, of one image, that it shall take; None for any.
        opset: version of ONNX's operators.

    Returns:
        How much the worst of the file's operators, run alone by onnxruntime, differs from the reference.

    Raises:
        RuntimeError: this PyTorch is too old.

    A detector's file has a second, optional input: `score_threshold` `(1,)`.
    """
    functions = Functions(opset)
    program = _traced(what, shape, opaque=True)
    with torch.no_grad(), _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            custom_translation_table={**functions.table(), **regions.table()},
            output_names=list(what.outputs),
            verbose=False,
        )
        functions.add_to(exported.model)
    model = exported.model
    if shape is None:
        _name_sizes(model)
    if what.detects:
        model.graph.inputs.append(model.graph.initializers['score_threshold'])
    model.metadata_props.update({f'mmvmamba.{key}': value for key, value in what.facts.items()})
    exported.save(str(path))
    return functions.difference()


def to_program(what: Exportable, path: str | Path, shape: tuple[int, int] | None = None) -> float:
    """Write a program for `torch.export.load`, of PyTorch's own operators; arguments and result as of `to_onnx`."""
    _refuse_detectors(what)
    program = _traced(what, shape, opaque=False)
    with _quiet():
        torch.export.save(program, str(path))
    return alone.decomposed(what.module, _sample(what, shape))


def to_package(what: Exportable, path: str | Path, shape: tuple[int, int]) -> float:
    """Compile by AOTInductor for this CPU; `torch._inductor.aoti_load_package` runs it.

    Arguments and result as of `to_onnx`, but of one size: AOTInductor of PyTorch 2.13 stops at the sizes that are
    computed from an image's (`KeyError: s6`).
    """
    _refuse_detectors(what)
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(_traced(what, shape, opaque=False), package_path=str(path))
    return alone.decomposed(what.module, _sample(what, shape))


def _refuse_detectors(what: Exportable) -> None:
    if what.detects:
        raise ValueError(
            "whole detectors are exported to .onnx only: a .pt2 consists of PyTorch's own operators, which have "
            'neither non-maximum suppression nor RoIAlign; take --out FILE.onnx or --what backbone'
        )


def _sample(what, shape) -> torch.Tensor:
    """An image to trace; zeros would do, but for operators that look at values."""
    traced = TRACED_ALONE if what.detects else TRACED
    batch, *sides = traced if shape is None else (1, *shape)
    return torch.rand(batch, 3, *sides, generator=torch.Generator().manual_seed(0))


def _traced(what: Exportable, shape, opaque: bool) -> torch.export.ExportedProgram:
    if tuple(int(part) for part in torch.__version__.split('+')[0].split('.')[:2]) < OLDEST_TORCH:
        needed = '.'.join(map(str, OLDEST_TORCH))
        raise RuntimeError(f'export needs torch {needed} or newer, this is {torch.__version__}')
    dimensions = (2, 3) if what.detects else (0, 2, 3)
    dynamic = None if shape else (dict.fromkeys(dimensions, torch.export.Dim.AUTO),)
    with torch.no_grad(), dispatch.exporting(opaque), _quiet():
        return torch.export.export(what.module.cpu(), (_sample(what, shape),), dynamic_shapes=dynamic, strict=False)


def _name_sizes(model) -> None:
    """Readable names for the input's dynamic sizes; those of the outputs follow from them and are dropped."""
    image = model.graph.inputs[0]
    batch = image.shape[0] if isinstance(image.shape[0], int) else 'batch'
    image.shape = type(image.shape)([batch, 3, 'height', 'width'])
    for node in model.graph:
        for value in node.outputs:
            if value not in model.graph.outputs and value.shape is not None:
                value.shape = None
    for value in model.graph.outputs:
        sizes = [size if isinstance(size, int) else None for size in value.shape]
        value.shape = type(value.shape)(sizes)


@contextlib.contextmanager
def _quiet():
    """Keep exporters' remarks on their own insides to themselves."""
    loggers = [
        logging.getLogger(name) for name in ('torch.onnx', 'onnxscript', 'onnx_ir', 'torch._export.serde.serialize')
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
