"""Workers of a run that load no model. The name of an image says what its worker does."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minigdino import ArgumentError, CheckpointError
from minigdino.runs.workers import Setup


@dataclass(frozen=True)
class Acting(Setup):
    """A setup whose text says what a worker does at its start, and whose model is a folder of files."""

    def detector(self):
        if self.text == "refuse":
            raise CheckpointError("no model")
        if self.text == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return partial(act, Path(os.fsdecode(self.model)))


def act(folder, item):
    """Do what the name of the image says, such as "die-12"."""
    name, _, _ = item.uri.partition("-")
    if name == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "once" and not (folder / item.uri).exists():
        (folder / item.uri).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "exit":
        sys.exit(3)
    if name == "stop":
        raise ArgumentError("expected another argument")
    if name == "memory":
        raise MemoryError
    if name == "slow":
        time.sleep(60)
    if name == "meet":  # two workers
        (folder / f"met-{os.getpid()}").touch()
        while len(list(folder.glob("met-*"))) < 2:
            time.sleep(0.01)
    ignores = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    return {"image": item.uri, "id": item.id, "pid": os.getpid(), "ignores Ctrl-C": ignores}
