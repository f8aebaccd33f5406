"""Read a directory with a checkpoint: weights, configuration, tokenizer and image settings that belong together."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from ..errors import CheckpointError, Error, from_signal_handler
from ..image import SETTINGS_FILES, ImageSettings
from ..prompt import Tokenizer
from .config import Config
from .json_file import status
from .saving import unfinished
from .weights import INDEX, read_checkpoint

FILES = (INDEX, "model.safetensors", "config.json", "tokenizer.json", "vocab.txt", "tokenizer_config.json",
         *SETTINGS_FILES)  # all that are read, except shards
ATTEMPTS = 10  # 0.1 s apart, while another process replaces the files


def read_directory(path: Path, directory: Path, mmap: bool,
                   ) -> tuple[dict[str, np.ndarray], Config, Tokenizer | None, ImageSettings]:
    """Read the files of one checkpoint, even if another process replaces it meanwhile.

    The files belong together if no save is moving its files at a moment between two equal states of all of them.

    Args:
        path: the directory, or a safetensors file in it.
        directory: the directory.
        mmap: as in `read_safetensors`.

    Returns:
        Tensors, as from `read_checkpoint`, config, tokenizer (None without its files) and image settings.

    Raises:
        CheckpointError: if a file is missing or corrupted, or the files do not belong together.
        ConfigError: if `config.json` has unsupported or inconsistent values.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(0.1)
        before = _states(path, directory)
        if left := unfinished(directory):
            problem = (f"{directory}: expected files of one model; {left[0].name} shows that a save has not replaced "
                       "all of them. It was interrupted, or still runs. Save the model again. If this message stays, "
                       "or you know that the files belong together, delete that folder")
            continue
        try:
            parts = _parts(path, directory, mmap)
        except Error:
            if _states(path, directory) == before:
                raise
        else:
            if _states(path, directory) == before:
                return parts
        problem = f"{directory}: the files must not change while they are read; they did. Load the model again"
    raise CheckpointError(problem)


def _states(path, directory):
    """Identity, size and times of the files of a checkpoint. A change of a shard needs a new index.

    The time of the last status change shows that a failed save replaced a file and put it back.
    """
    names = FILES if path == directory else (path.name, *FILES)
    files = [status(directory / name) for name in names]
    return [file and (file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns) for file in files]


def _parts(path, directory, mmap):
    """Read the files of a checkpoint. Refuses weights that `Model.save` wrote for another config."""
    config_file = directory / "config.json"
    config = Config.from_file(config_file)
    tensors, saved = read_checkpoint(path, mmap)
    try:
        matches = saved is None or Config.from_dict(json.loads(saved)) == config
    except (ValueError, TypeError, RecursionError) as error:  # ConfigError is a ValueError
        if from_signal_handler(error):
            raise
        matches = False
    if matches:
        return tensors, config, Tokenizer.from_directory(directory), ImageSettings.from_directory(directory)
    raise CheckpointError(f"{path}: the weights must have been saved with the values in {config_file}; the two belong "
                          "to different checkpoints, or config.json was edited. Save the model again with Model.save. "
                          "For other values, save Model(tensors, config, ...)")
