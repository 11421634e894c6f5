"""Suppression and RoIAlign in onnxruntime: as mmcv computes them."""

import pytest
import torch

from mmvmamba.deploy import regions

pytest.importorskip('mmcv.ops')


class _Regions(torch.nn.Module):
    """Pools boxes, drops some and pools the rest, each on its level."""

    scales = (0.25, 0.125)

    def forward(self, fine, coarse, boxes, scores, levels, above):
        pooled = regions.pyramid_align([fine, coarse], boxes, levels, self.scales, 3, 0)
        kept = regions.nms(boxes, scores, above, 0.5, 40)
        return pooled, kept, regions.pyramid_align([fine, coarse], boxes[kept], levels[kept], self.scales, 3, 2)


def inputs(count, height, width):
    generator = torch.Generator().manual_seed(count)
    centres = torch.rand(count, 2, generator=generator) * torch.tensor([width * 4.0, height * 4.0])
    sides = torch.rand(count, 2, generator=generator) * 60 + 0.5
    return (
        torch.randn(1, 3, height, width, generator=generator),
        torch.randn(1, 3, height // 2, width // 2, generator=generator),
        torch.cat([centres - sides / 2, centres + sides / 2], 1),
        torch.rand(count, generator=generator),
        torch.randint(0, 2, (count,), generator=generator),
        torch.tensor([0.3]),
    )


def test_in_onnxruntime(tmp_path):
    """Other numbers of boxes and sizes of maps than were traced; a single box, whose other level is empty."""
    onnxruntime = pytest.importorskip('onnxruntime')
    auto = torch.export.Dim.AUTO
    sizes = ({2: auto, 3: auto}, {2: auto, 3: auto}, {0: auto}, {0: auto}, {0: auto}, None)
    program = torch.export.export(_Regions(), inputs(50, 20, 30), dynamic_shapes=sizes, strict=False)
    exported = torch.onnx.export(
        program, dynamo=True, opset_version=20, custom_translation_table=regions.table(), verbose=False
    )
    exported.save(str(tmp_path / 'model.onnx'))
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx', providers=['CPUExecutionProvider'])
    names = [value.name for value in session.get_inputs()]
    for count, height, width in ((50, 20, 30), (200, 17, 41), (1, 9, 9)):
        given = inputs(count, height, width)
        actual = session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})
        for ours, expected in zip(actual, _Regions()(*given), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), expected)
