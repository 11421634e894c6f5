from pathlib import Path

import pytest
from tool_runs import run_tool


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    """A very small shapes dataset."""
    out = tmp_path_factory.mktemp('data') / 'shapes'
    done = run_tool('make_shapes_dataset.py', out, '--train', 12, '--val', 4, '--size', 64, '--seed', 3)
    assert done.returncode == 0, done.stderr
    return out
