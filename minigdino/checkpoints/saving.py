"""Write a checkpoint: a directory with weights, configuration, image settings and tokenizer.

Every file is written to a temporary folder first and then renamed. So no reader sees part of a file, and processes that
have mapped the old weights keep them.

The folder `.minigdino-saving-*` is named `.minigdino-moving-*` from the moment when it is complete until all its files
have been moved. So a reader that finds that name knows that the other files may belong to different models. A subfolder
has hard links to the old files, so that a save that fails can put them back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from ..errors import CheckpointError, brief, from_signal_handler
from ..prompt import Tokenizer
from .config import Config
from .json_file import is_folder, status
from .weights import INDEX, SAVED_CONFIG

try:
    import fcntl
except ImportError:  # Windows
    fcntl: Any = None

MAX_WAIT = 60  # seconds; how long a save waits for another one into the same folder
WEIGHTS = "model.safetensors"
SAVING, MOVING = ".minigdino-saving-", ".minigdino-moving-"  # prefixes of temporary folders
OLD = "old"  # their subfolder with the replaced files

_locks: set[int] = set()  # open descriptors of locked folders


def _close_locks():
    """Close descriptors in a forked child. It would keep the locks if its parent is killed."""
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks)


def save_checkpoint(directory: str | Path, tensors: dict[str, np.ndarray], config: Config, settings: dict,
                    tokenizer: Tokenizer | None) -> None:
    """Write a directory that `load` and transformers can read. An existing checkpoint in it is replaced.

    Args:
        directory: folder to write to; created if it does not exist.
        tensors: {published name: array}.
        config: geometry of the model.
        settings: content of preprocessor_config.json.
        tokenizer: the tokenizer; None to write none.

    Raises:
        CheckpointError: if the directory cannot be written, or another save into it does not end. The old checkpoint
            is still in place then, unless the message says otherwise.
    """
    from safetensors import SafetensorError

    try:
        if not is_folder(directory):
            os.makedirs(directory, exist_ok=True)
        with _alone(Path(directory)) as locked:
            _save(Path(directory), locked, tensors, config, settings, tokenizer)
    except CheckpointError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: the model cannot be written there ({brief(error)}). Choose a folder "
                              "with write permission and enough disk space") from None


def unfinished(directory: str | Path, prefix: str = MOVING) -> list[Path]:
    """List temporary folders of saves, those that run and those that were killed.

    Args:
        directory: folder of a checkpoint.
        prefix: `MOVING` for saves that replace files of the checkpoint, `SAVING` for those that write new files.

    Returns:
        Their paths, sorted; none if the directory cannot be listed. So a reader without permission to list it (mode
        0711, for example) does not notice them.
    """
    try:
        names = os.listdir(directory)
    except OSError as error:
        if from_signal_handler(error):
            raise
        return []
    return [Path(directory, name) for name in sorted(names) if name.startswith(prefix)]


def _save(directory, locked, *content):
    killed = unfinished(directory)
    saving = Path(mkdtemp(prefix=SAVING, dir=directory))
    moving = directory / saving.name.replace(SAVING, MOVING)
    try:
        _write(saving, *content)
        had_old = _prepare(saving, directory)
        saving.rename(moving)
        try:
            _move(moving, directory)
            moving.rename(saving)  # now the folder holds only the old files
        except BaseException as error:
            # Without `moving`, the last step is done, and the new files stay.
            if status(moving) and not _restore(moving, saving, directory, had_old) and isinstance(error, OSError):
                raise CheckpointError(f"{directory}: expected to replace all files; the save failed ({brief(error)}) "
                                      "when some were replaced already, which cannot be undone. The other new files "
                                      f"are in {moving}, the old ones with a hard link in its folder `{OLD}`. Save the "
                                      "model again, as a user who may replace all files") from None
            raise
        for path in killed:  # their files are replaced by now
            if locked or _is_stale(path, directory):
                remove_folder(path)
    finally:
        remove_folder(saving)
        if status(moving / WEIGHTS):  # moved first, so all old files are still in place
            remove_folder(moving)


def _write(folder, tensors, config, settings, tokenizer):
    from safetensors.numpy import save_file

    shared = not any(name.startswith(("bbox_embed.1.", "model.decoder.bbox_embed.1.")) for name in tensors)
    config = {**config.to_dict(), "decoder_bbox_embed_share": shared, "decoder_cls_embed_share": shared,
              "two_stage_bbox_embed_share": False}
    for name, values in (("config.json", config), ("preprocessor_config.json", settings)):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt", SAVED_CONFIG: json.dumps(config)})
    # safetensors lets only the owner read the file; use the mode that the umask gives
    (folder / WEIGHTS).chmod(stat.S_IMODE((folder / "config.json").stat().st_mode))
    if tokenizer:
        tokenizer.save(folder)


def _prepare(folder, directory):
    """Give new files the modes of those that they replace, and link the old ones. Refuse a folder in their place.

    Returns {name of a new file: whether it replaces an old one}.
    """
    for target in (directory / INDEX, *(directory / file.name for file in folder.iterdir())):
        if found := status(target):
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(f"{target.name} must be a file; it is a folder")
            if (new := folder / target.name).exists():
                new.chmod(stat.S_IMODE(found.st_mode))
    had_old = {file.name: status(directory / file.name, follow=False) is not None for file in folder.iterdir()}
    (folder / OLD).mkdir()
    for name in had_old:
        try:
            os.link(directory / name, folder / OLD / name)  # weights are too large to copy
        except OSError as error:  # there is no old file, or it cannot have links
            if from_signal_handler(error):
                raise
    return had_old


def _move(folder, directory):
    os.replace(folder / WEIGHTS, directory / WEIGHTS)  # a mapping of the old file stays valid
    with contextlib.suppress(FileNotFoundError):
        os.rename(directory / INDEX, folder / OLD / INDEX)  # the index of old shards, which `load` would prefer
    for file in sorted(folder.iterdir()):
        if file.name != OLD:
            os.replace(file, directory / file.name)


def _restore(moving, saving, directory, had_old):
    """Undo `_move`, if all old files can be put back, and return whether that is done."""
    try:
        moved = [name for name in had_old if not status(moving / name)]
        if any(had_old[name] and not status(moving / OLD / name, follow=False) for name in moved):
            return False
        for name in moved:
            if had_old[name]:
                os.replace(moving / OLD / name, directory / name)
            else:
                (directory / name).unlink(missing_ok=True)
        if status(moving / OLD / INDEX, follow=False):
            os.replace(moving / OLD / INDEX, directory / INDEX)
        moving.rename(saving)
    except OSError as error:
        if from_signal_handler(error):
            raise
        return False
    return True


def _is_stale(path, directory):
    """Return whether a temporary folder is too old for a running save, by the clock of the file system."""
    found, now = status(path), status(directory)  # a save has just changed the directory
    return found is not None and now is not None and now.st_mtime - found.st_mtime > MAX_WAIT


def remove_folder(folder: str | Path) -> None:
    """Remove a temporary folder if it exists. One that cannot be removed stays."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        if from_signal_handler(error):
            raise


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[bool]:
    """Wait until no other model is being saved to a folder, and remove the files of saves that were killed.

    Yields whether the folder is locked.
    """
    with contextlib.ExitStack() as stack:
        try:
            is_locked = stack.enter_context(locked(directory, MAX_WAIT))
        except BlockingIOError:
            raise CheckpointError(f"{directory}: expected other saves into this folder to end within {MAX_WAIT} s; one "
                                  "still holds it. End that process, or choose another folder") from None
        for path in unfinished(directory, SAVING) if is_locked else ():
            remove_folder(path)
        yield is_locked


@contextlib.contextmanager
def locked(directory: str | Path, wait: float) -> Iterator[bool]:
    """Hold the lock of a folder. The system releases it when the process ends, for whatever reason.

    Args:
        directory: the folder.
        wait: seconds to wait for another owner of the lock. It can be a stopped process, or this one: a signal handler
            can interrupt it.

    Yields:
        Whether the folder is locked. Windows and some file systems have no locks.

    Raises:
        BlockingIOError: if there still is another owner.
    """
    descriptor, is_locked = None, False
    try:
        try:
            descriptor = os.open(directory, os.O_RDONLY)
            _locks.add(descriptor)
            _lock(descriptor, wait)
            is_locked = True
        except BlockingIOError:
            raise
        except OSError as error:
            if from_signal_handler(error):
                raise
        yield is_locked
    finally:
        if descriptor in _locks:  # not in a child that was forked meanwhile
            _locks.remove(descriptor)
            if is_locked:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # at once, even if another process has the descriptor
            os.close(descriptor)


def _lock(descriptor, wait):
    end = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise
        time.sleep(0.02)
