"""The zoo's page names every config, and no figure of ours that nobody measured."""

import re
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


def rows():
    """Config name to the cells of its row."""
    found = {}
    for line in (CONFIGS / 'README.md').read_text().splitlines():
        match = re.fullmatch(r'\| `(\w+)\.py` \|(.*)\|', line)
        if match:
            assert match.group(1) not in found, f'{match.group(1)} has two rows'
            found[match.group(1)] = [cell.strip() for cell in match.group(2).split('|')]
    return found


def test_every_config_has_a_row_and_every_row_a_config():
    assert set(rows()) == {path.stem for path in CONFIGS.glob('*.py')}


def test_published_figures_in_configs_and_page_agree():
    for name, cells in rows().items():
        said = re.search(r'[Pp]ublished: ([^(]*)', (CONFIGS / f'{name}.py').read_text().split('_base_')[0])
        if said:
            in_config = re.findall(r'\d+\.\d+', said.group(1).split(', with')[0])
            assert in_config == re.findall(r'\d+\.\d+', cells[-2])[: len(in_config)], name


def test_nothing_is_claimed_as_ours():
    assert {cells[-1] for cells in rows().values()} == {'not trained by us'}
