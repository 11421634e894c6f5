"""Published files onto this machine: looked for in a folder, then in torch hub's cache, then at their address.

A download that was cut is resumed where the server can tell that the file is still the same, else begun again. A file
gets its name only when it is whole. Beside it lies a record of its size and SHA-256, to which it is held ever after.
"""

import contextlib
import errno
import hashlib
import http.client
import json
import logging
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import torch
from mmengine.logging import print_log

from .published import Published, find
from .reading import CheckpointError

FOLDER = 'MMVMAMBA_WEIGHTS'
OFFLINE = 'MMVMAMBA_OFFLINE'
_ATTEMPTS = 5
_PAUSE = 1.0  # seconds before the next attempt
_TIMEOUT = 10.0  # seconds without an answer
_CHUNK = 1 << 20
_verified: dict[Path, tuple[int, int]] = {}  # files held to their record by this process: size, time of change


class WeightsUnavailable(CheckpointError):
    """Published weights that cannot be had: which, from where, why, and what to do by hand."""


class _Cut(Exception):
    """A transfer that may succeed when it is tried again."""


class _Failed(Exception):
    """A transfer that cannot succeed."""


def fetch(source: str) -> Path:
    """The local file of published weights, downloaded if this machine does not have it.

    Args:
        source: `mmvmamba://NAME`, or the address of a file.

    Raises:
        CheckpointError: an unknown name; a file that is no longer what was downloaded.
        WeightsUnavailable: the file is not here and cannot be downloaded.
    """
    wanted = find(source)
    if not wanted.file:
        raise CheckpointError(f'{source} ends in no name of a file')
    path = _by_hand(wanted) or Path(torch.hub.get_dir(), 'checkpoints', wanted.file)
    if not path.exists():
        if os.environ.get(OFFLINE, '').upper() in ('1', 'ON', 'YES', 'TRUE'):
            raise _unavailable(wanted, path, f'it is not on this machine, and {OFFLINE} is set')
        try:
            _download_once(wanted, path)
        except (_Cut, _Failed) as error:
            raise _unavailable(wanted, path, str(error)) from error
        except OSError as error:
            reason = f'{path.parent} cannot be written: {error.strerror or error}'
            raise _unavailable(wanted, path, reason, 'TORCH_HOME=DIR names another cache') from error
    _hold_to_record(wanted, path)
    return path


def _by_hand(wanted: Published) -> Path | None:
    """The file in the folder that the environment names: as published, or under the name of the weights."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise CheckpointError(f'{FOLDER}={folder} is not a folder; expected the one that holds files of weights')
    names = [wanted.file] + [f'{wanted.name}{suffix}' for suffix in ('.safetensors', '.pth', '.ckpt') if wanted.name]
    return next((path for path in (Path(folder, name) for name in names) if path.exists()), None)


def _unavailable(wanted: Published, path: Path, reason: str, *advice: str) -> WeightsUnavailable:
    lines = [
        f'the weights {wanted.source} cannot be had: {reason}',
        f'  file:    {wanted.file}',
        f'  address: {wanted.url}',
        f'  by hand: put the file into {path.parent}, or into any folder and set {FOLDER} to that folder',
    ]
    return WeightsUnavailable('\n'.join(lines + [f'  {line}' for line in (*advice, wanted.remark) if line]))


def _record(path: Path) -> Path:
    return path.with_name(f'{path.name}.json')


def _recorded(record: Path) -> dict:
    """What a record says.

    Raises:
        CheckpointError: it is damaged, or another program's.
    """
    try:
        found = json.loads(record.read_text())
        return dict(address=found['address'], size=int(found['size']), sha256=found['sha256'])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f'{record} is no record of a download, or damaged; expected address, size and sha256. Move it away to '
            f'use {record.name.removesuffix(".json")} as it is, or both to download that again'
        ) from error


def _hold_to_record(wanted: Published, path: Path) -> None:
    """Refuse a file that is not the one that was downloaded. One that was put there by hand has no record."""
    record, state = _record(path), path.stat()
    if not record.is_file():
        return
    expected = _recorded(record)
    if not wanted.name and expected['address'] != wanted.url:
        raise CheckpointError(
            f'{path} was downloaded from {expected["address"]}, and {wanted.url} ends in the same name; move one of '
            f'them to a folder of its own and give its path'
        )
    if _verified.get(path) == (state.st_size, state.st_mtime_ns):
        return
    size = state.st_size
    digest = _sha256(path) if size == expected['size'] else ''
    if digest != expected['sha256']:
        what = f'SHA-256 {digest}' if digest else f'{size:,} bytes'
        raise CheckpointError(
            f'{path} is not the file that was downloaded: it has {what}, {record.name} says {expected["size"]:,} bytes '
            f'and SHA-256 {expected["sha256"]}. Delete both to download it again, or the record alone to use the file '
            f'as it is'
        )
    _verified[path] = (size, state.st_mtime_ns)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _alone(path: Path):
    """Hold the lock of a file; yields whether there is one, which some file systems and Windows cannot give."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    with path.with_name(f'{path.name}.lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print_log(f'another process downloads {path.name}: waiting for it', logger='current')
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            yield False
            return
        yield True


def _download_once(wanted: Published, path: Path) -> None:
    """Download a file unless another process does, and give it its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path) as alone:
        if path.exists():
            return
        part = path.with_name(f'{path.name}.part' if alone else f'{path.name}.{os.getpid()}.part')
        print_log(f'downloading {wanted.source}: {wanted.url} to {path}', logger='current')
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                _transfer(wanted.url, part)
                break
            except _Cut as cut:
                if attempt == _ATTEMPTS:
                    raise _Cut(f'{cut}, in the last of {_ATTEMPTS} attempts') from cut
                print_log(f'{wanted.file}: {cut}; trying again', logger='current', level=logging.WARNING)
                time.sleep(_PAUSE)
        _accept(wanted, part, path)


def _accept(wanted: Published, part: Path, path: Path) -> None:
    """Hold a whole download to an earlier record, or record it; then give it its name."""
    found = dict(address=wanted.url, size=part.stat().st_size, sha256=_sha256(part))
    record = _record(path)
    if record.is_file():
        earlier = _recorded(record)
        if any(found[key] != earlier[key] for key in ('size', 'sha256')):
            part.unlink()
            raise _Failed(
                f'the file at its address has changed: {found["size"]:,} bytes and SHA-256 {found["sha256"]}, where '
                f'{record} has {earlier["size"]:,} bytes and {earlier["sha256"]}. Delete that record to accept it'
            )
    else:
        written = part.with_suffix('.record')
        written.write_text(json.dumps(found, indent=2) + '\n')
        written.replace(record)
    part.replace(path)
    _about(part).unlink(missing_ok=True)


def _about(part: Path) -> Path:
    """Beside a file that is not whole: whose part it is."""
    return part.with_name(f'{part.name}.json')


def _resumable(url: str, part: Path) -> tuple[int, dict]:
    """How many bytes are here already, and what is known of the file that they belong to."""
    try:
        about = json.loads(_about(part).read_text())
        return (part.stat().st_size, about) if about['url'] == url and about['mark'] else (0, {})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0, {}


def _transfer(url: str, part: Path) -> None:
    """One attempt to complete a part."""
    done, about = _resumable(url, part)
    if done and done == about.get('total'):
        return  # whole, and this process or another ended before it had its name
    headers = {'User-Agent': 'mmvmamba', 'Accept-Encoding': 'identity'}
    if done:
        headers |= {'Range': f'bytes={done}-', 'If-Range': about['mark']}
    with _open(urllib.request.Request(url, headers=headers), part) as response:
        if response.status == 206:
            start, _, length = response.headers.get('Content-Range', '').removeprefix('bytes ').partition('/')
            if start.partition('-')[0] != str(done):
                part.unlink()
                raise _Cut('the server went on at another place than asked')
        else:
            done, length = 0, response.headers.get('Content-Length', '')
        if not length.isdigit() and response.headers.get('Transfer-Encoding', '') != 'chunked':
            raise _Failed('the server does not say how long the file is, so that nobody could tell a part from all')
        if response.headers.get_content_type() == 'text/html':
            raise _Failed('a web page came in place of the file')
        total = int(length) if length.isdigit() else None
        mark = response.headers.get('ETag') or response.headers.get('Last-Modified') or ''
        about = dict(url=url, mark='' if mark.startswith('W/') else mark, total=total)
        _about(part).write_text(json.dumps(about))
        _receive(response, part, done, total)


def _open(request: urllib.request.Request, part: Path):
    """The server's answer; redirects are followed."""
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # longer than the file is by now
            part.unlink(missing_ok=True)
        if error.code in (408, 416, 429) or error.code >= 500:
            raise _Cut(f'the server answers {error.code} ({error.reason})') from error
        raise _Failed(f'the server answers {error.code} ({error.reason})') from error
    except urllib.error.URLError as error:
        raise _Failed(f'the server cannot be reached ({error.reason})') from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _Cut(f'the connection broke before an answer ({type(error).__name__})') from error
    except ValueError as error:  # what is no address
        raise _Failed(str(error)) from error


def _receive(response, part: Path, done: int, total: int | None) -> None:
    """Write what the server sends behind the bytes that are here; count them."""
    size, broken = done, ''
    bar = dict(total=total, initial=done, unit='B', unit_scale=True, desc=part.name.removesuffix('.part'))
    with part.open('ab' if done else 'wb') as file, torch.hub.tqdm(**bar, disable=not sys.stderr.isatty()) as progress:
        while not broken:
            try:
                chunk = response.read(_CHUNK)
            except (http.client.HTTPException, OSError) as error:
                broken, chunk = f' ({type(error).__name__})', b''
            if not chunk:
                break
            file.write(chunk)
            size += len(chunk)
            progress.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if broken or total not in (None, size):
        of = f' of {total:,}' if total is not None else ''
        raise _Cut(f'the connection was cut{broken} after {size:,}{of} bytes')
