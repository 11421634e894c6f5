"""What torchvision's import asks for is defined only where its library cannot be loaded."""

import subprocess
import sys

from tool_runs import load_tool


def test_operators_are_defined_beside_a_library_for_another_pytorch(tmp_path):
    package = tmp_path / 'torchvision'
    package.mkdir()
    (package / '__init__.py').touch()
    (package / '_C.so').write_bytes(b'built for CUDA')
    code = (
        'import sys, torch\n'
        f'sys.path.insert(0, {str(tmp_path)!r})\n'
        'from mmvmamba.torchvision_stubs import define_missing_operators as define\n'
        'for toolkit in ("cuda", "hip"):\n'
        '    setattr(torch.version, toolkit, "1.0")\n'
        '    assert define() is False\n'
        '    setattr(torch.version, toolkit, None)\n'
        '    define.cache_clear()\n'
        'assert not hasattr(torch.ops.torchvision, "nms")\n'
        'assert define() and define(), "twice is once"\n'
        'assert [a.name for a in torch.ops.torchvision.nms.default._schema.arguments] == ["dets", "scores", '
        '"iou_threshold"]\n'
        'assert "torchvision" not in sys.modules\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_nothing_is_defined_without_torchvision():
    code = (
        'import sys, torch\n'
        'from mmvmamba import torchvision_stubs\n'
        'torchvision_stubs.find_spec = lambda name: None\n'
        'assert torchvision_stubs.define_missing_operators() is False\n'
        'assert not hasattr(torch.ops.torchvision, "nms")\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_in_an_environment_of_the_set_up_whoever_asks_first_can_import_it(tmp_path):
    load_tool('setup_env').mend_torchvision(tmp_path)
    package = tmp_path / 'torchvision'
    package.mkdir()
    (package / '__init__.py').write_text('import torch\nSCHEMA = torch.ops.torchvision.nms.default._schema\n')
    (package / '_C.so').write_bytes(b'built for CUDA')
    code = (
        'import site, sys\n'
        'sys.meta_path = [finder for finder in sys.meta_path if getattr(finder, "__module__", "") != '
        '"mmvmamba_torchvision_hook"]\n'
        'sys.modules.pop("mmvmamba_torchvision_hook", None)\n'
        f'sys.path.insert(0, {str(tmp_path)!r})\n'
        f'site.addsitedir({str(tmp_path)!r})\n'
        'assert "torch" not in sys.modules\n'
        'import torch\n'
        'torch.version.cuda = torch.version.hip = None\n'
        'import torchvision\n'
        'assert torchvision.SCHEMA.arguments[0].name == "dets"\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
