"""Rules of the house that can be read off the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ('kernels', 'mmvmamba', 'tools', 'configs')
SOURCES = {
    path: ast.parse(path.read_text(encoding='utf-8')) for folder in FOLDERS for path in (ROOT / folder).rglob('*.py')
}


def name_of(path: Path) -> str:
    """The module that a file is once installed."""
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(('mmvmamba', *parts) if parts[0] == 'kernels' else parts).removesuffix('.__init__')


MODULES = {name_of(path): path for path in SOURCES}


def imported(name: str) -> set[str]:
    """The modules of this repository that one imports, wherever in it, but for type checkers."""
    path = MODULES[name]
    package = name if path.name == '__init__.py' else name.rpartition('.')[0]
    found = set()
    for node in ast.walk(SOURCES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split('.')[: len(package.split('.')) + 1 - node.level] if node.level else []
            base = '.'.join([*above, *([node.module] if node.module else [])])
            found |= {f'{base}.{alias.name}' if f'{base}.{alias.name}' in MODULES else base for alias in node.names}
    return found & set(MODULES) - {name}


def test_no_modules_import_each_other_in_a_circle():
    waiting = {name: imported(name) for name in MODULES}
    while free := [name for name, needs in waiting.items() if not needs & set(waiting)]:
        for name in free:
            del waiting[name]
    assert not waiting


@pytest.mark.parametrize('folder', FOLDERS)
def test_functions_are_short(folder):
    """A kernel may take 80 lines, any other function 60; its docstring is counted."""
    for path, tree in SOURCES.items():
        if path.relative_to(ROOT).parts[0] != folder:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                kernel = any('jit' in ast.unparse(decorator) for decorator in node.decorator_list)
                assert node.end_lineno - node.lineno < (80 if kernel else 60), f'{path}: {node.name}'


def test_constructors_of_models_say_their_types():
    for path, tree in SOURCES.items():
        if ROOT / 'mmvmamba/models' not in path.parents:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == '__init__':
                given = [*node.args.posonlyargs, *node.args.args[1:], *node.args.kwonlyargs]
                assert all(one.annotation for one in given), f'{path}:{node.lineno}'
                assert len(given) < 3 or len({one.lineno for one in given}) == len(given), f'{path}:{node.lineno}'
