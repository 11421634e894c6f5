"""Checkpoints that a kill cannot spoil: written under another name first, and checked before a training goes on."""

import os
import re
import shutil
import zipfile
from pathlib import Path

from mmengine.dist import barrier, is_main_process
from mmengine.hooks import CheckpointHook

from mmvmamba import checkpoints
from mmvmamba.registry import HOOKS

_NUMBERED = re.compile(r'(epoch|iter)_(\d+)\.pth')
_POINTER = 'last_checkpoint'


def save(runner, out_dir: str, filename: str, *args, **kwargs) -> None:
    """`runner.save_checkpoint`, such that `filename` is at any moment the old file or the whole new one.

    Sharded checkpoints, which are folders, are gone for the moment between the old and the new one. Remote folders are
    left to their storage, which shows a file only when it is complete. All processes must call it.
    """
    if '://' in str(out_dir):
        runner.save_checkpoint(out_dir, filename, *args, **kwargs)
        return
    temporary = f'{filename}.tmp'  # always the same: the next attempt overwrites what a kill leaves behind
    runner.save_checkpoint(out_dir, temporary, *args, **kwargs)
    barrier()
    if is_main_process():
        _replace(Path(out_dir, temporary), Path(out_dir, filename))


def _replace(temporary: Path, final: Path) -> None:
    """Rename, after the content has reached the disk."""
    for path in temporary.rglob('*') if temporary.is_dir() else [temporary]:
        if path.is_file():
            _flush(path)
    if final.is_dir():
        shutil.rmtree(final)
    os.replace(temporary, final)
    if os.name == 'posix':  # elsewhere folders cannot be opened
        _flush(final.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name == 'posix' else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Saving:
    """A runner whose `save_checkpoint` is `save`."""

    def __init__(self, runner):
        self._runner = runner

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def save_checkpoint(self, *args, **kwargs) -> None:
        save(self._runner, *args, **kwargs)


@HOOKS.register_module()
class DurableCheckpointHook(CheckpointHook):
    """mmengine's checkpoint hook, with files that appear whole, and old ones removed only after that.

    A kill at any moment leaves the checkpoint before usable, and `last_checkpoint` naming a whole one. Takes mmengine's
    arguments.
    """

    def _save_best_checkpoint(self, runner, metrics) -> None:
        super()._save_best_checkpoint(_Saving(runner), metrics)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        """Save one, point to it, then remove what is one too many."""
        outdated = None
        if self.max_keep_ckpts > 0:
            if step not in self.keep_ckpt_ids:
                if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                    outdated = self.keep_ckpt_ids.popleft()
                self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        save(
            runner,
            self.out_dir,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        pointer = Path(runner.work_dir, f'{_POINTER}.tmp')
        pointer.write_text(str(self.last_ckpt))
        _replace(pointer, pointer.with_suffix(''))
        if outdated is not None:
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(outdated))
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # sharded
                self.file_backend.rmtree(path)


def latest(work_dir: str | Path, trust: bool = False) -> tuple[str | None, list[str]]:
    """The newest checkpoint of a work folder that can be read, and why newer ones cannot.

    Args:
        work_dir: where `last_checkpoint` lies, or checkpoints named after their epoch or iteration.
        trust: see `checkpoints.read_file`.

    Returns:
        Path, or None where there is no checkpoint at all; and one sentence for each damaged one that was passed over.

    Raises:
        CheckpointError: there are checkpoints, but not one can be read.
    """
    damaged = []
    for path in _newest_first(Path(work_dir)):
        try:
            _check(path, trust)
        except (FileNotFoundError, checkpoints.CheckpointError) as error:
            damaged.append(str(error))
            continue
        return str(path), damaged
    if damaged:
        listed = '\n  '.join(damaged)
        raise checkpoints.CheckpointError(
            f'no checkpoint in {work_dir} can be read:\n  {listed}\nTo start anew, name another --work-dir'
        )
    return None, []


def _newest_first(work_dir: Path) -> list[Path]:
    """What `last_checkpoint` names, then what came before it."""
    pointer = work_dir / _POINTER
    named = pointer.read_text().strip() if pointer.is_file() else ''
    if '://' in named:
        return [named]
    last = Path(named) if named else None
    folder = last.parent if last is not None and last.parent.is_dir() else work_dir
    numbered = {}
    for path in folder.glob('*.pth') if folder.is_dir() else []:
        match = _NUMBERED.fullmatch(path.name)
        if match:
            numbered[match[1], int(match[2])] = path
    if last is None:
        return [numbered[key] for key in sorted(numbered, key=lambda key: key[1], reverse=True)]
    match = _NUMBERED.fullmatch(last.name)
    before = [key for key in numbered if match and key[0] == match[1] and key[1] < int(match[2])]
    return [last, *(numbered[key] for key in sorted(before, reverse=True))]


def _check(path, trust: bool) -> None:
    """Refuse a file that is truncated, altered or carries code. Folders and remote files are left to who wrote them."""
    if '://' in str(path) or path.is_dir():
        return
    if zipfile.is_zipfile(path):  # torch.load checks no sums
        try:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
        except zipfile.BadZipFile as error:
            raise checkpoints.CheckpointError(f'{path} is truncated or damaged ({error})') from error
        if broken is not None:
            raise checkpoints.CheckpointError(f'{path} is damaged: the checksum of {broken} in it is wrong')
    checkpoints.read_file(path, trust=trust)
