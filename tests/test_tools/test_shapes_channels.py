"""Generated plates of cells: the layout that the dataset reads, the same bytes for the same seed."""

import numpy as np
from tool_runs import run_tool

from mmvmamba.datasets.multichannel import JumpCPDataset


def test_a_plate_is_read_by_the_dataset(tmp_path):
    arguments = ('--channels', 5, '--train', 40, '--val', 8, '--size', 64)
    for folder in ('a', 'b'):
        done = run_tool('make_shapes_dataset.py', tmp_path / folder, *arguments)
        assert done.returncode == 0, done.stderr
    assert '48 images of 5 channels' in done.stdout
    root = tmp_path / 'a/cells'
    files = sorted((root / 'images').iterdir())
    assert len(files) == 48
    for file in files:
        assert file.read_bytes() == (tmp_path / 'b/cells/images' / file.name).read_bytes()
    assert np.load(files[0]).shape == (5, 64, 64)
    dataset = JumpCPDataset('plate.csv', 'platemap.csv', 'metadata.csv', split=None, data_root=str(root))
    assert len(dataset) == 48
    assert len(dataset.metainfo['classes']) == 6
    assert {dataset[i]['gt_label'] for i in range(48)} == set(range(6))
    again = run_tool('make_shapes_dataset.py', tmp_path / 'a', *arguments)
    assert again.returncode == 2
    assert 'add --overwrite' in again.stderr
    few = run_tool('make_shapes_dataset.py', tmp_path / 'c', '--channels', 2)
    assert 'at least 3' in few.stderr
