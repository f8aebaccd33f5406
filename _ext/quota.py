"""How many processors a container grants this process. It limits time, so the system still shows all of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path

UNLIMITED = 1 << 20


@functools.cache
def quota() -> int:
    """Whole processors that the control groups of this process grant; UNLIMITED without a limit."""
    least = min(grants(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")), default=UNLIMITED)
    return max(1, math.ceil(least))


def grants(root: Path, membership: Path) -> Iterator[float]:
    """Every limit in force, in processors: of this process's group and of those around it."""
    try:
        lines = membership.read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:  # hierarchy:controllers:group; version 2 has one line, and names no controllers
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "cpu", "cpu,cpuacct"):
            own = (root / controllers).joinpath(*group.strip("/").split("/"))
            for folder in (own, *own.parents):
                if folder.is_relative_to(root):
                    yield from _limit(folder)


def _limit(folder):
    """The limit set at one group, or nothing: none is set ("max" or -1), or inside a container it has another name."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()  # version 2
    except (OSError, ValueError):
        try:
            quota, period = [(folder / f"cpu.cfs_{n}_us").read_text(encoding="ascii") for n in ("quota", "period")]
        except OSError:
            return
    if quota != "max" and int(quota) > 0:
        yield int(quota) / int(period)
