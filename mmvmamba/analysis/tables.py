"""Tables of documents, made from files of measurements, so that a figure has one place.

A file of `kernels/measurements/` holds `{'machine': {...}, 'command': ..., 'rows': [...]}`, as `tools/benchmark.py
--json` writes it. A document shows it between `<!-- table: NAME -->` and `<!-- end of table -->`;
`<!-- table: NAME: a, b -->` shows the columns a and b alone.
"""

import json
import re
from pathlib import Path

_TABLE = re.compile(
    r'(?P<start><!-- table: (?P<name>\w+)(?:: (?P<columns>[^>]+?))? -->\n).*?(?P<end><!-- end of table -->)', re.S
)


def markdown(rows: list[dict], columns: list[str] | None = None) -> str:
    """Rows of equal keys as a markdown table of these columns, or of all."""
    columns = columns or list(rows[0])
    lines = [columns, ['---'] * len(columns), *([str(row[key]) for key in columns] for row in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def filled(document: str, folder: Path) -> str:
    """A document's text with every table as the files of `folder` say it, under a line with command, commit, device.

    Raises:
        FileNotFoundError: a table names no file of the folder.
        KeyError: a file has no such column.
    """

    def table(found: re.Match) -> str:
        measured = json.loads((folder / f'{found["name"]}.json').read_text())
        columns = found['columns'] and [name.strip() for name in found['columns'].split(',')]
        return f'{found["start"]}{_label(measured)}\n\n{markdown(measured["rows"], columns)}\n{found["end"]}'

    return _TABLE.sub(table, document)


def _label(measured: dict) -> str:
    """What the figures are to be read with; rows that were measured apart name their own command and commit."""
    machine = measured['machine']
    facts = [f'commit {machine["commit"]}'] if 'commit' in machine else []
    facts = '; '.join([*facts, machine['device']])
    return f'`{measured["command"]}` ({facts})' if 'command' in measured else f'({facts})'
