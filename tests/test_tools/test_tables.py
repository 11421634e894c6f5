"""Tables of the documents are what the files of measurements say."""

import json
import re

import pytest
from tool_runs import ROOT, load_tool

from mmvmamba.analysis import tables

MEASUREMENTS = ROOT / 'kernels' / 'measurements'


@pytest.fixture
def documents(tmp_path, monkeypatch):
    """The tool, over a copy of the documents."""
    tool = load_tool('tables')
    for name in tool.DOCUMENTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.setattr(tool, 'ROOT', tmp_path)
    return tool


def test_documents_are_as_measured(documents, capsys):
    assert documents.main(['--check']) == 0, capsys.readouterr().out


def test_a_figure_changed_by_hand_is_noticed_and_mended(documents, capsys):
    path = documents.ROOT / 'kernels/measured.md'
    whole = path.read_text()
    path.write_text(whole.replace('| 0.709 |', '| 0.609 |'))
    assert documents.main(['--check']) == 1
    assert 'kernels/measured.md: differs' in capsys.readouterr().out
    assert documents.main([]) == 0
    assert path.read_text() == whole


def test_every_file_is_shown_and_says_where_it_comes_from(documents):
    shown = {
        name for path in documents.DOCUMENTS for name in re.findall(r'<!-- table: (\w+)', (ROOT / path).read_text())
    }
    assert shown == {path.stem for path in MEASUREMENTS.glob('*.json')}
    for path in MEASUREMENTS.glob('*.json'):
        measured = json.loads(path.read_text())
        assert measured['machine']['device']
        for row in measured['rows']:
            assert row.get('commit') or measured['machine']['commit'], path
            assert row.get('command') or measured['command'], path


def test_columns_can_be_chosen():
    rows = [{'side': 224, 's': 0.1, 'MiB': 3}]
    assert tables.markdown(rows, ['MiB', 'side']) == '| MiB | side |\n| --- | --- |\n| 3 | 224 |'


def test_figures_in_running_text_are_those_of_the_files():
    rows = json.loads((MEASUREMENTS / 'cpu.json').read_text())['rows']
    times = {row['candidate']: row['p50 s'] for row in rows if row['question'] == '800 x 1280, evaluation'}
    assert f'{times["VMamba-T"]} s beside {times["Swin-T"]} s' in (ROOT / 'README.md').read_text()
