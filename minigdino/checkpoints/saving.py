"""Write a checkpoint: a directory with weights, configuration, image settings and tokenizer.

Every file is written to a temporary folder first and then renamed. So no reader sees part of a file, and processes that
have mapped the old weights keep them.
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
from tempfile import TemporaryDirectory

import numpy as np

from ..errors import CheckpointError, brief, from_signal_handler
from ..prompt import Tokenizer
from .config import Config
from .weights import INDEX, SAVED_CONFIG

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAX_WAIT = 60  # seconds; how long a save waits for another one into the same folder


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
        CheckpointError: if the directory cannot be written.
    """
    from safetensors import SafetensorError

    try:
        os.makedirs(directory, exist_ok=True)
        with _alone(Path(directory)), TemporaryDirectory(prefix=".saving-", dir=directory) as folder:
            _write(Path(folder), tensors, config, settings, tokenizer)
            _move(Path(folder), Path(directory))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: the model cannot be written there ({brief(error)}). Choose a folder "
                              "with write permission and enough disk space") from None


def _write(folder, tensors, config, settings, tokenizer):
    from safetensors.numpy import save_file

    shared = not any(name.startswith(("bbox_embed.1.", "model.decoder.bbox_embed.1.")) for name in tensors)
    config = {**config.to_dict(), "decoder_bbox_embed_share": shared, "decoder_cls_embed_share": shared,
              "two_stage_bbox_embed_share": False}
    for name, values in (("config.json", config), ("preprocessor_config.json", settings)):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt", SAVED_CONFIG: json.dumps(config)})
    # safetensors lets only the owner read the file; use the mode that the umask gives
    (folder / "model.safetensors").chmod(stat.S_IMODE((folder / "config.json").stat().st_mode))
    if tokenizer:
        tokenizer.save(folder)


def _move(folder, directory):
    # weights first: until config.json follows, `load` finds that the two differ
    os.replace(folder / "model.safetensors", directory / "model.safetensors")  # a mapping of the old stays valid
    (directory / INDEX).unlink(missing_ok=True)  # the index of old shards, which `load` would prefer
    for file in sorted(folder.iterdir()):
        os.replace(file, directory / file.name)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Wait until no other model is being saved to a folder, and remove the files of saves that were killed."""
    descriptor, locked = None, False
    try:
        try:
            descriptor = os.open(directory, os.O_RDONLY)
            locked = _lock(descriptor)
        except OSError as error:  # Windows, and file systems without locks
            if from_signal_handler(error):
                raise
        for path in directory.glob(".saving-????????") if locked else ():
            shutil.rmtree(path, ignore_errors=True)
        yield
    finally:
        if locked:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor too
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor):
    """Lock a folder, and return whether it is locked. The system releases the lock when the process ends.

    Waits at most `MAX_WAIT` seconds. The owner can be a stopped process, or a save that a signal handler interrupted.
    """
    end = time.monotonic() + MAX_WAIT
    while time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.02)
    return False
