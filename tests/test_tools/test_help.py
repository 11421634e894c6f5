"""Every tool explains itself, with an example that names things that exist."""

import re
import runpy
import shlex
import sys

import pytest
from tool_runs import ROOT
from triton_runs import OLDEST_TRITON

TOOLS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / 'tools').rglob('*.py')
    if "__name__ == '__main__'" in path.read_text()
)
READ_CHECKPOINTS = (
    *('train', 'test', 'image_demo', 'convert_checkpoint', 'export'),
    *('erf', 'activation_map', 'mae_pictures', 'resolution'),
)


@pytest.fixture
def help_of(monkeypatch, capsys):
    """What a tool prints with --help; in this process, as a dozen that import PyTorch would take a minute."""

    def run(tool, *words):
        monkeypatch.setattr(sys, 'argv', [tool, *words, '--help'])
        monkeypatch.setenv('COLUMNS', '120')
        monkeypatch.syspath_prepend((ROOT / tool).parent)  # as Python does: set-up's programs import each other
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / tool), run_name='__main__')
        assert not left.value.code
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize('tool', TOOLS)
def test_help_has_an_example(tool, help_of):
    if tool.endswith('aot_report.py'):
        pytest.importorskip('triton', minversion=OLDEST_TRITON)
    shown = help_of(tool)
    assert re.search(r'^Examples?:', shown, re.MULTILINE)
    examples = re.sub(r'\\\n\s*', '', shown[shown.index('Example') :])  # lines that go on are joined
    commands = [shlex.split(line, comments=True)[2:] for line in re.findall(rf'python {tool}.*', examples)]
    assert commands, f'no example of {tool} itself'
    for words in commands:
        subcommand = [word for word in words[:1] if re.search(rf'[{{,]{word}[,}}]', shown)]
        options = help_of(tool, *subcommand) if subcommand else shown
        for word in words:
            assert not word.startswith('configs/') or (ROOT / word.partition('=')[0]).is_file(), f'{word}: no such file'
            assert not word.startswith('--') or re.search(rf'^  .*{word}\b', options, re.MULTILINE), f'{word}: unknown'
    reads = tool.rpartition('/')[2].removesuffix('.py') in READ_CHECKPOINTS
    assert ('--trust-checkpoint' in shown) == reads


@pytest.mark.parametrize('script', sorted((ROOT / 'tools').glob('*.sh')), ids=lambda path: path.name)
def test_shell_scripts_have_one_too(script):
    assert re.search(rf'^#.* tools/{script.name} ', script.read_text(), re.MULTILINE)


def test_pictures_of_the_readme_are_here_and_small():
    pictures = re.findall(r'!\[[^]]*\]\((\S+)\)', (ROOT / 'README.md').read_text())
    assert len(pictures) >= 3
    assert all((ROOT / picture).stat().st_size < 150_000 for picture in pictures)
