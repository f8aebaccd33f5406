"""Write a checkpoint: a directory with weights, configuration, image settings and tokenizer.

Every file is written to a temporary folder first and then renamed. So no reader sees part of a file, and processes that
have mapped the old weights keep them.

The folder `.minigdino-saving-*` is renamed to `.minigdino-moving-*` when it is complete, and removed when all its files
have been moved. So a reader that finds it knows that the other files may belong to different models.
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

import numpy as np

from ..errors import CheckpointError, brief, from_signal_handler
from ..prompt import Tokenizer
from .config import Config
from .json_file import is_folder, status
from .weights import INDEX, SAVED_CONFIG

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAX_WAIT = 60  # seconds; how long a save waits for another one into the same folder
WEIGHTS = "model.safetensors"
SAVING, MOVING = ".minigdino-saving-", ".minigdino-moving-"  # prefixes of temporary folders

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
        CheckpointError: if the directory cannot be written, or another save into it does not end.
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
        Their paths, sorted; none if the directory cannot be listed.
    """
    try:
        names = os.listdir(directory)
    except OSError as error:
        if from_signal_handler(error):
            raise
        return []
    return [Path(directory, name) for name in sorted(names) if name.startswith(prefix)]


def _save(directory, locked, *content):
    saving = Path(mkdtemp(prefix=SAVING, dir=directory))
    moving = directory / saving.name.replace(SAVING, MOVING)
    try:
        _write(saving, *content)
        _prepare(saving, directory)
        saving.rename(moving)
        _move(moving, directory)
        moving.rmdir()
        for path in unfinished(directory) if locked else ():  # of killed saves, whose files are replaced by now
            _remove(path)
    finally:
        _remove(saving)
        if status(moving / WEIGHTS):  # moved first, so all old files are still in place
            _remove(moving)


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
    """Give new files the modes of those that they replace. Refuse a folder in the place of a file."""
    for target in (directory / INDEX, *(directory / file.name for file in folder.iterdir())):
        if found := status(target):
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(f"{target.name} must be a file; it is a folder")
            if (new := folder / target.name).exists():
                new.chmod(stat.S_IMODE(found.st_mode))


def _move(folder, directory):
    os.replace(folder / WEIGHTS, directory / WEIGHTS)  # a mapping of the old file stays valid
    (directory / INDEX).unlink(missing_ok=True)  # the index of old shards, which `load` would prefer
    for file in sorted(folder.iterdir()):
        os.replace(file, directory / file.name)


def _remove(folder):
    """Remove a temporary folder if it exists. One that cannot be removed stays."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        if from_signal_handler(error):
            raise


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[bool]:
    """Wait until no other model is being saved to a folder, and remove the files of saves that were killed.

    Yields whether the folder is locked. Windows and some file systems have no locks.
    """
    descriptor, locked = None, False
    try:
        try:
            descriptor = os.open(directory, os.O_RDONLY)
            _locks.add(descriptor)
            _lock(descriptor, directory)
            locked = True
        except CheckpointError:
            raise
        except OSError as error:
            if from_signal_handler(error):
                raise
        for path in unfinished(directory, SAVING) if locked else ():
            _remove(path)
        yield locked
    finally:
        if descriptor in _locks:  # not in a child that was forked meanwhile
            _locks.remove(descriptor)
            if locked:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # at once, even if another process has the descriptor
            os.close(descriptor)


def _lock(descriptor, directory):
    """Lock a folder. The system releases the lock when the process ends.

    Waits at most `MAX_WAIT` seconds. The owner can be a stopped process, or a save that a signal handler interrupted.
    """
    end = time.monotonic() + MAX_WAIT
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() > end:
            raise CheckpointError(f"{directory}: expected other saves into this folder to end within {MAX_WAIT} s; one "
                                  "still holds it. End that process, or choose another folder")
        time.sleep(0.02)
