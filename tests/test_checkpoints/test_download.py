"""Published files over a network that misbehaves: a whole file, or words and nothing that is used later."""

import hashlib
import json
import multiprocessing
import os
import random
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

from mmvmamba import checkpoints
from mmvmamba.checkpoints import CheckpointError, WeightsUnavailable, download

CONTENT = random.Random(0).randbytes(30_000)
SOURCE = 'mmvmamba://vmamba_tiny_s1l8'


def leftovers(cache):
    """What lies in the cache beside whole files, their records and locks."""
    return sorted(path.name for path in cache.iterdir() if '.part' in path.name or path.suffix == '.record')


def test_downloads_once_and_records(mirror, cache, entry):
    mirror.files[entry.file] = CONTENT
    path = checkpoints.locate(SOURCE)
    assert path == cache / entry.file
    assert path.read_bytes() == CONTENT
    assert checkpoints.locate(SOURCE) == path
    assert mirror.asked == [(entry.file, '')]
    record = json.loads((cache / f'{entry.file}.json').read_text())
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert record == dict(address=f'{mirror.address}/{entry.file}', size=len(CONTENT), sha256=digest)
    assert not leftovers(cache)


def test_a_cut_connection_is_resumed(mirror, cache, entry):
    mirror.files[entry.file] = CONTENT
    mirror.trouble = lambda name, number: 0.4 if number == 1 else None
    assert checkpoints.locate(SOURCE).read_bytes() == CONTENT
    assert mirror.asked[1] == (entry.file, f'bytes={int(0.4 * len(CONTENT))}-')
    assert not leftovers(cache)


@pytest.mark.parametrize('why', ['no mark', 'changed'])
def test_or_begun_again_where_parts_might_not_match(why, mirror, cache, entry):
    mirror.files[entry.file] = other = CONTENT[::-1]
    mirror.marks = why != 'no mark'

    def trouble(name, number):
        if number == 2 and why == 'changed':
            mirror.files[name] = CONTENT
        return 0.4 if number == 1 else None

    mirror.trouble = trouble
    found = checkpoints.locate(SOURCE).read_bytes()
    assert found == (CONTENT if why == 'changed' else other)
    assert not leftovers(cache)


def test_a_killed_process_is_resumed_by_the_next(mirror, cache, entry):
    mirror.files[entry.file] = CONTENT
    mirror.trouble = lambda name, number: 0.3 if number <= download._ATTEMPTS else None
    with pytest.raises(WeightsUnavailable, match=r'was cut after .* of 30,000 bytes, in the last of 5 attempts'):
        checkpoints.locate(SOURCE)
    assert not (cache / entry.file).exists(), 'half a file has no name that anybody reads'
    assert not (cache / f'{entry.file}.json').exists()
    assert checkpoints.locate(SOURCE).read_bytes() == CONTENT
    assert not leftovers(cache)


def test_wrong_size(mirror, cache, entry):
    """A server that promises more than it has."""
    mirror.files[entry.file] = CONTENT
    mirror.headers = {'Content-Length': str(len(CONTENT) + 7)}
    mirror.marks = False
    with pytest.raises(WeightsUnavailable, match=r'after 30,000 of 30,007 bytes'):
        checkpoints.locate(SOURCE)
    assert not (cache / entry.file).exists()


@pytest.mark.parametrize(
    'headers, words',
    [
        ({'Content-Length': None}, 'does not say how long the file is'),
        ({'Content-Type': 'text/html; charset=utf-8'}, 'a web page came in place of the file'),
    ],
)
def test_what_cannot_be_checked_is_not_taken(headers, words, mirror, cache, entry):
    mirror.files[entry.file] = CONTENT
    mirror.headers = headers
    with pytest.raises(WeightsUnavailable, match=words):
        checkpoints.locate(SOURCE)
    assert not (cache / entry.file).exists()


@pytest.mark.parametrize('code, asked', [(404, 1), (403, 1), (500, download._ATTEMPTS), (429, download._ATTEMPTS)])
def test_refusals_name_file_address_and_what_to_do(code, asked, mirror, cache, entry):
    mirror.files[entry.file] = CONTENT
    mirror.trouble = lambda name, number: code
    with pytest.raises(WeightsUnavailable) as caught:
        checkpoints.locate(SOURCE)
    text = str(caught.value)
    assert f'the weights {SOURCE} cannot be had: the server answers {code}' in text
    assert f'file:    {entry.file}\n' in text
    assert f'address: {mirror.address}/{entry.file}\n' in text
    assert f'put the file into {cache}, or' in text
    assert len(mirror.asked) == asked
    assert not leftovers(cache)


def test_a_server_that_is_busy_once(mirror, cache, entry):
    mirror.files[entry.file] = CONTENT
    mirror.trouble = lambda name, number: 503 if number == 1 else None
    assert checkpoints.locate(SOURCE).read_bytes() == CONTENT


def test_redirects_are_followed(mirror, cache, entry):
    mirror.files['elsewhere'] = CONTENT
    mirror.redirects[entry.file] = f'{mirror.address}/elsewhere'
    mirror.trouble = lambda name, number: 0.5 if number == 1 else None
    assert checkpoints.locate(SOURCE).read_bytes() == CONTENT
    assert [name for name, _ in mirror.asked] == [entry.file, 'elsewhere'] * 2
    assert mirror.asked[-1] == ('elsewhere', 'bytes=15000-')


def test_redirects_in_a_circle(mirror, cache, entry):
    mirror.redirects[entry.file] = f'{mirror.address}/{entry.file}'
    with pytest.raises(WeightsUnavailable, match='the server answers 302'):
        checkpoints.locate(SOURCE)


def test_a_file_that_changed_on_disk(mirror, cache, entry):
    mirror.files[entry.file] = CONTENT
    path = checkpoints.locate(SOURCE)
    for damaged in (CONTENT[:-1], CONTENT[:-1] + b'x'):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r'is not the file that was downloaded: .* Delete both') as caught:
            checkpoints.locate(SOURCE)
        assert str(path) in str(caught.value)
    (cache / f'{entry.file}.json').unlink()
    assert checkpoints.locate(SOURCE).read_bytes() == damaged, 'as the message says'


@pytest.mark.parametrize('text', ['', '{"size": 1}', '[]'])
def test_a_record_that_is_none(text, mirror, cache, entry):
    mirror.files[entry.file] = CONTENT
    path = checkpoints.locate(SOURCE)
    path.with_name(f'{entry.file}.json').write_text(text)
    with pytest.raises(CheckpointError, match=rf'{entry.file}\.json is no record of a download, or damaged.*Move it'):
        checkpoints.locate(SOURCE)


def test_a_file_that_changed_at_its_address(mirror, cache, entry):
    mirror.files[entry.file] = CONTENT
    checkpoints.locate(SOURCE).unlink()
    mirror.files[entry.file] = CONTENT[::-1]
    with pytest.raises(WeightsUnavailable, match=r'the file at its address has changed: .* Delete that record'):
        checkpoints.locate(SOURCE)
    assert not (cache / entry.file).exists()
    assert not [name for name in leftovers(cache) if name.endswith('.part')]
    (cache / f'{entry.file}.json').unlink()
    assert checkpoints.locate(SOURCE).read_bytes() == CONTENT[::-1]


def test_a_cache_that_cannot_be_written(mirror, cache, entry, monkeypatch):
    """As a read-only file system says it; permissions alone do not bind the superuser that tests may run as."""

    def refuse(self, *arguments, **options):
        raise OSError(30, 'Read-only file system', str(self))

    mirror.files[entry.file] = CONTENT
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'mkdir', refuse)
        with pytest.raises(WeightsUnavailable, match=r'cannot be written: Read-only file system') as caught:
            checkpoints.locate(SOURCE)
    assert 'TORCH_HOME=DIR' in str(caught.value)
    cache.parent.mkdir()
    cache.write_text('')  # a file where the folder should be
    with pytest.raises(WeightsUnavailable, match='cannot be written: File exists'):
        checkpoints.locate(SOURCE)
    cache.unlink()
    cache.mkdir()
    (cache / entry.file).write_bytes(CONTENT)
    monkeypatch.setattr(Path, 'mkdir', refuse)
    assert checkpoints.locate(SOURCE) == cache / entry.file, 'what is there needs no writing'


def test_a_disk_that_is_full(mirror, cache, entry, monkeypatch):
    def refuse(descriptor):
        raise OSError(28, 'No space left on device')

    mirror.files[entry.file] = CONTENT
    monkeypatch.setattr(os, 'fsync', refuse)
    with pytest.raises(WeightsUnavailable, match='No space left on device'):
        checkpoints.locate(SOURCE)
    assert not (cache / entry.file).exists()


def test_no_network(cache, entry, monkeypatch):
    def refuse(*arguments, **options):
        raise socket.gaierror(-3, 'Temporary failure in name resolution')

    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    start = time.monotonic()
    with pytest.raises(WeightsUnavailable, match=r'the server cannot be reached .*name resolution') as caught:
        checkpoints.locate(SOURCE)
    assert time.monotonic() - start < 5
    assert f'address: {entry.address}' in str(caught.value)


def test_offline_asks_nobody(mirror, cache, entry, monkeypatch):
    monkeypatch.setenv('MMVMAMBA_OFFLINE', '1')
    with pytest.raises(WeightsUnavailable, match='it is not on this machine, and MMVMAMBA_OFFLINE is set'):
        checkpoints.locate(SOURCE)
    assert not mirror.asked
    cache.mkdir(parents=True)
    (cache / entry.file).write_bytes(CONTENT)
    assert checkpoints.locate(SOURCE) == cache / entry.file
    monkeypatch.setenv('MMVMAMBA_OFFLINE', '0')
    (cache / entry.file).unlink()
    mirror.files[entry.file] = CONTENT
    assert checkpoints.locate(SOURCE).exists()


def test_a_folder_of_ones_own_comes_first(mirror, cache, entry, tmp_path, monkeypatch):
    folder = tmp_path / 'weights'
    monkeypatch.setenv('MMVMAMBA_WEIGHTS', str(folder))
    with pytest.raises(CheckpointError, match=r'MMVMAMBA_WEIGHTS=.* is not a folder'):
        checkpoints.locate(SOURCE)
    folder.mkdir()
    mirror.files[entry.file] = CONTENT
    assert checkpoints.locate(SOURCE) == cache / entry.file, 'what is not there is looked for as ever'
    for name in ('vmamba_tiny_s1l8.pth', 'vmamba_tiny_s1l8.safetensors', entry.file):  # the later, the sooner taken
        (folder / name).write_bytes(b'mine')
        assert checkpoints.locate(SOURCE) == folder / name
    assert len(mirror.asked) == 1


def test_two_processes_download_once(mirror, cache, entry):
    pytest.importorskip('fcntl')
    mirror.files[entry.file] = CONTENT
    mirror.pause = 0.05
    processes = multiprocessing.get_context('fork')  # which spares them seconds of imports
    running = [processes.Process(target=checkpoints.locate, args=(SOURCE,)) for _ in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0]
    assert (cache / entry.file).read_bytes() == CONTENT
    assert mirror.asked == [(entry.file, '')]
    assert not leftovers(cache)


def test_file_systems_without_locks_end_with_a_whole_file(mirror, cache, entry, monkeypatch):
    fcntl = pytest.importorskip('fcntl')

    def refuse(*arguments):
        raise OSError(37, 'No locks available')

    monkeypatch.setattr(fcntl, 'flock', refuse)
    mirror.files[entry.file] = CONTENT
    assert checkpoints.locate(SOURCE).read_bytes() == CONTENT
    assert not leftovers(cache)


def test_any_address_is_downloaded_the_same_way(host, cache):
    host.files['mine.pth'] = CONTENT
    assert checkpoints.locate(f'{host.address}/mine.pth').read_bytes() == CONTENT
    with pytest.raises(CheckpointError, match='ends in the same name'):
        checkpoints.locate(f'{host.address}/folder/mine.pth')
    with pytest.raises(CheckpointError, match='ends in no name of a file'):
        checkpoints.locate(f'{host.address}/')


def test_a_web_page_that_pretends_to_be_a_file_is_refused_when_read(mirror, cache, entry):
    mirror.files[entry.file] = b'<html>sign in</html>'
    with pytest.raises(CheckpointError, match=r'damaged'):
        checkpoints.read(SOURCE)


def test_progress_is_shown_on_a_terminal_only(mirror, cache, entry, monkeypatch):
    shown = []

    class Bar:
        def __init__(self, total=None, initial=0, disable=False, **options):
            self.line = [initial, total, disable]
            shown.append(self.line)

        def update(self, count):
            self.line[0] += count

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(torch.hub, 'tqdm', Bar)
    mirror.files[entry.file] = CONTENT
    mirror.trouble = lambda name, number: 0.5 if number == 1 else None
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, 'isatty', lambda terminal=terminal: terminal, raising=False)
        checkpoints.locate(SOURCE).unlink()
    assert shown == [[15000, 30000, False], [30000, 30000, False], [30000, 30000, True]]
