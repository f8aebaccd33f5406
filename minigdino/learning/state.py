"""The state of a training run on disk, so that a run that was killed can be resumed with the same result.

A run has a folder with a subfolder `training`: `settings.json`, all that determines the result, and
`state.safetensors`, which is replaced as a whole. All random numbers depend on the seed and the number of the step
only, so they are no part of the state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.json_file import is_folder, read_json, status
from ..checkpoints.saving import locked
from ..checkpoints.weights import read_safetensors
from ..errors import ArgumentError, CheckpointError, brief, from_signal_handler
from ..writing import check_writable, reason, replace_file
from .optimizer import Moments

FOLDER = "training"
SETTINGS, STATE = "settings.json", "state.safetensors"
DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.float64): "F64"}  # names in safetensors


@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """Everything that a step changes.

    Attributes:
        tensors: {published name: array} of the trained tensors.
        moments: {published name: `Moments`} of the optimizer.
        losses: the loss of each step that is done.
        precisions: pairs (steps done, AP50 on the validation set).
    """

    tensors: dict[str, np.ndarray]
    moments: dict[str, Moments]
    losses: tuple[float, ...] = ()
    precisions: tuple[tuple[int, float], ...] = ()

    @property
    def step(self) -> int:
        """Number of steps that are done."""
        return len(self.losses)


def initial(tensors: dict[str, np.ndarray]) -> State:
    """Return the state before the first step, with the trained tensors of the checkpoint."""
    return State(tensors, {name: Moments.zeros(array) for name, array in tensors.items()})


def write(directory: str | Path, state: State) -> None:
    """Write the state of a run, in place of the one that is there.

    Args:
        directory: folder of the run.
        state: the state.

    Raises:
        ArgumentError: if the file cannot be written. The old one stays then.
    """
    arrays = {"losses": np.array(state.losses, np.float64),
              "precisions": np.array(state.precisions, np.float64).reshape(-1, 2)}
    for name, array in state.tensors.items():
        arrays |= {f"tensors.{name}": array, f"means.{name}": state.moments[name].mean,
                   f"squares.{name}": state.moments[name].square}
    replace_file(Path(directory, FOLDER, STATE), _safetensors(arrays))


def _safetensors(arrays) -> Iterator[bytes]:
    """Blocks of a safetensors file, one array after the other: a large state is never copied in full."""
    ends = list(itertools.accumulate((array.nbytes for array in arrays.values()), initial=0))
    header = json.dumps({name: {"dtype": DTYPES[array.dtype], "shape": array.shape, "data_offsets": [start, end]}
                         for (name, array), start, end in zip(arrays.items(), ends, ends[1:])}).encode()
    header += b" " * (-len(header) % 8)  # aligns the arrays
    yield len(header).to_bytes(8, "little") + header
    for array in arrays.values():
        yield array.tobytes()


def read(directory: str | Path, start: State) -> State:
    """Read the state of a run.

    Args:
        directory: folder of the run.
        start: the state before the first step, returned if none has been written.

    Returns:
        The state.

    Raises:
        CheckpointError: if the file is damaged, or has other tensors than `start`.
    """
    path = Path(directory, FOLDER, STATE)
    if status(path) is None:
        return start
    arrays = read_safetensors(path, mmap=False)
    wanted = {f"{part}.{name}": array.shape for name, array in start.tensors.items()
              for part in ("tensors", "means", "squares")}
    if {name: array.shape for name, array in arrays.items() if "." in name} != wanted or "losses" not in arrays:
        raise CheckpointError(f"{path}: expected the state of a run that trains {len(start.tensors)} tensors of this "
                              "model; got another one. Begin a new run in another folder")
    return State(
        {name: arrays[f"tensors.{name}"] for name in start.tensors},
        {name: Moments(arrays[f"means.{name}"], arrays[f"squares.{name}"]) for name in start.tensors},
        tuple(arrays["losses"].tolist()), tuple((int(step), value) for step, value in arrays["precisions"].tolist()))


def open_folder(directory: str | Path, settings: dict[str, Any], resume: bool) -> None:
    """Create the folder of a run, or check that it is the folder of the run that is resumed.

    Args:
        directory: the folder.
        settings: all that determines the result, as a JSON object.
        resume: whether to continue a run. A folder that does not exist or is empty begins a new one all the same.

    Raises:
        ArgumentError: if the folder has other files, is that of a run with other settings or of one that another
            process continues, or cannot be written.
    """
    path = Path(directory, FOLDER, SETTINGS)
    if not is_folder(path.parent) and _is_empty(directory):
        check_writable(path)  # creates the folder, which can be locked then
    with held(directory):
        _open_folder(directory, path, settings, resume)


@contextlib.contextmanager
def held(directory: str | Path) -> Iterator[None]:
    """Hold the folder of a run, so that no other process continues the run, and fails if another one does.

    Args:
        directory: folder of the run.

    Raises:
        ArgumentError: if another process holds it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(Path(directory, FOLDER), wait=0))
        except BlockingIOError:
            raise ArgumentError(f"{directory}: expected the folder of a run that no process continues; another one "
                                "does. Wait until it ends, end it, or choose another folder") from None
        yield


def _open_folder(directory, path, settings, resume):
    _remove_parts(path.parent)
    if _is_empty(directory):
        replace_file(path, json.dumps(settings, indent=2).encode() + b"\n")
        return
    if status(path) is None:
        raise ArgumentError(f"{directory}: expected a new or empty folder for the run; it has other files. Choose "
                            "another folder")
    if not resume:
        raise ArgumentError(f"{directory}: expected a new or empty folder for the run; it has one already. Give "
                            "--resume to continue it, or choose another folder")
    earlier = read_json(path)
    if not isinstance(earlier, dict):
        raise ArgumentError(f"{path}: expected the settings of a run; got {brief(earlier)}. Choose another folder")
    given = json.loads(json.dumps(settings))
    differences = [f"{name} {brief(earlier.get(name))} (now {brief(given.get(name))})"
                   for name in {**earlier, **given} if name not in VARYING and earlier.get(name) != given.get(name)]
    if differences:
        raise ArgumentError(f"{directory}: --resume needs the settings with which the run was begun, "
                            f"{', '.join(differences)}. Give the same ones, or choose another folder")


# The fingerprint shows whether the model is the same. Validation and `keep` do not change the training
VARYING = "minigdino", "model", "keep", "validation"


def _remove_parts(folder):
    """Remove files of a run that was killed while it wrote them. One that cannot be removed stays."""
    for part in folder.glob(".*.part"):
        try:
            part.unlink()
        except OSError as error:
            if from_signal_handler(error):
                raise


def _is_empty(directory):
    if status(directory) is None:
        return True
    if not is_folder(directory):
        raise ArgumentError(f"{directory}: expected a folder for the run; got a file. Choose another name")
    try:
        return not [*filter(FOLDER.__ne__, os.listdir(directory)), *Path(directory, FOLDER).glob("*")]
    except OSError as error:
        if from_signal_handler(error):
            raise
        raise ArgumentError(f"{directory}: expected a readable folder ({reason(error)}). Choose another one") from None


def digest(samples: Sequence) -> str:
    """Return a fingerprint of annotations. It does not depend on the folder of the images."""
    content = [[os.path.basename(sample.path), np.asarray(sample.boxes).tolist(), list(sample.labels)]
               for sample in samples]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()
