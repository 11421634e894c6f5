"""A module to one ONNX file for every size."""
import torch
from mmvmamba.kernels import dispatch

from .operators import Functions


def to_onnx(module, image, path, dynamic=True, opset=20):
    functions = Functions(opset)
    AUTO = torch.export.Dim.AUTO
    with torch.no_grad(), dispatch.exporting(opaque=True):
        program = torch.export.export(module, (image,), dynamic_shapes=({0: AUTO, 2: AUTO, 3: AUTO},), strict=False)
    with torch.no_grad():
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=opset, custom_translation_table=functions.table(), verbose=False
        )
    functions.add_to(exported.model)
    exported.save(path)
