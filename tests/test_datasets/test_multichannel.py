"""Sets of images with many channels: tables, labels, splits, folders."""

import csv
import sys

import cv2
import numpy as np
import pytest

from mmvmamba.datasets.multichannel import JumpCPDataset, MultiChannelFolder, read_table, well_labels
from mmvmamba.datasets.report import DataError
from mmvmamba.registry import DATASETS

WELLS = [f'{row}{column:02d}' for row in 'ABCD' for column in range(1, 6)]
SAMPLES = ['DMSO', 'b-2', 'b-1', 'b-3', 'unknown']


def write(path, rows):
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def plate(tmp_path):
    """Twenty wells of five samples with four images each."""
    write(
        tmp_path / 'plate.csv',
        [dict(path=f'{w}_{i}.npy', ID=f'{w}{i}', well_loc=w) for i in range(4) for w in WELLS],
    )
    write(tmp_path / 'map.csv', [dict(well_position=w, broad_sample=SAMPLES[i % 5]) for i, w in enumerate(WELLS)])
    targets = {'b-1': 'kinase', 'b-2': 'protease', 'b-3': 'kinase', 'DMSO': ''}
    write(tmp_path / 'meta.csv', [dict(broad_sample=k, target=v, gene=v.upper()) for k, v in targets.items()])
    return dict(data_root=str(tmp_path), tables='plate.csv', plate_map='map.csv', metadata='meta.csv')


def test_labels_are_numbered_as_targets_first_appear_on_the_plate(plate, tmp_path):
    labels, names = well_labels(tmp_path / 'map.csv', tmp_path / 'meta.csv', 'target')
    assert names == ('negative control', 'protease', 'kinase')
    assert [labels[w] for w in WELLS[:5]] == [0, 1, 2, 2, 0]
    assert well_labels(tmp_path / 'map.csv', tmp_path / 'meta.csv', 'gene')[1][1] == 'PROTEASE'


def test_published_split_is_a_permutation_of_the_images(plate):
    order = np.random.RandomState(0).permutation(80)
    everything = [s['img_path'] for s in JumpCPDataset(**plate, split=None, serialize_data=False).data_list]
    for split, part in dict(train=order[:48], val=order[48:64], test=order[64:]).items():
        dataset = DATASETS.build(dict(type='mmvmamba.JumpCPDataset', **plate, split=split))
        assert [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))] == [
            everything[i] for i in sorted(part)
        ]
    assert dataset.metainfo['classes'] == ('negative control', 'protease', 'kinase')


def test_a_split_by_wells_shares_no_well(plate):
    sides = {
        s: JumpCPDataset(**plate, split=s, split_by='well', serialize_data=False).data_list
        for s in ('train', 'val', 'test')
    }
    wells = {s: {sample['well'] for sample in samples} for s, samples in sides.items()}
    assert sum(map(len, wells.values())) == len(set.union(*wells.values())) == 20
    assert sum(map(len, sides.values())) == 80
    for samples in sides.values():
        assert {sample['gt_label'] for sample in samples} == {0, 1, 2}
    other = JumpCPDataset(**plate, split='val', split_by='well', seed=5, serialize_data=False).data_list
    assert {s['well'] for s in other} != wells['val']


def test_bad_tables(plate, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r'nowhere\.csv: No such file'):
        read_table(tmp_path / 'nowhere.csv')
    with pytest.raises(DataError, match="no column 'compound'"):
        JumpCPDataset(**plate, target='compound')
    write(tmp_path / 'more.csv', [dict(path='x.npy', ID='1', well_loc='P24')])
    with pytest.raises(DataError, match=r'1 images lie in wells that the plate map does not have.*P24'):
        JumpCPDataset(**dict(plate, tables=['plate.csv', 'more.csv']))
    (tmp_path / 'plate.tsv').write_bytes(b'PAR1....')
    monkeypatch.setitem(sys.modules, 'pandas', None)
    with pytest.raises(DataError, match='parquet table, which needs pandas and pyarrow'):
        read_table(tmp_path / 'plate.tsv')


@pytest.mark.parametrize('change', [dict(split='dev'), dict(split_by='plate')])
def test_bad_arguments(plate, change):
    with pytest.raises(ValueError, match='is unknown; expected one of'):
        JumpCPDataset(**{**plate, **change})


def test_tab_separated_and_parquet(tmp_path):
    (tmp_path / 'a.tsv').write_text('x\ty\n1\t\n')
    assert read_table(tmp_path / 'a.tsv') == [dict(x='1', y=None)]
    pandas = pytest.importorskip('pandas')
    pytest.importorskip('pyarrow')
    pandas.DataFrame(dict(x=['1'], y=[None])).to_parquet(tmp_path / 'b.tsv')
    assert read_table(tmp_path / 'b.tsv') == [dict(x='1', y=None)]


def test_folder(tmp_path):
    for name in ('healthy', 'ill'):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / 'a.npy', np.zeros((3, 4, 5), np.uint8))
    cv2.imwritemulti(str(tmp_path / 'ill' / 'b.tiff'), [np.zeros((4, 5), np.uint16)] * 3)
    dataset = MultiChannelFolder(tmp_path, pipeline=[dict(type='mmvmamba.LoadPlanes', channels=3)])
    assert dataset.metainfo['classes'] == ('healthy', 'ill')
    assert [(s['gt_label'], s['img'].shape) for s in dataset] == [(0, (4, 5, 3)), (1, (4, 5, 3)), (1, (4, 5, 3))]
    assert MultiChannelFolder(tmp_path, classes=['ill'])[0]['gt_label'] == 0
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='no image with one of the endings'):
        MultiChannelFolder(tmp_path)
    with pytest.raises(DataError, match='no folder with a folder for each class'):
        MultiChannelFolder(tmp_path / 'nowhere')
