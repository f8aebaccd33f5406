"""CPU quota of this process, set by control groups. It limits CPU time; the system still lists all CPUs."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path

UNLIMITED = 1 << 20


@functools.cache
def quota() -> int:
    """Smallest quota of this process, rounded up to whole CPUs; UNLIMITED if there is none."""
    smallest = min(grants(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")), default=UNLIMITED)
    return max(1, math.ceil(smallest))


def grants(root: Path, membership: Path) -> Iterator[float]:
    """Yield the quotas of this process's control groups and of their parents, in CPUs.

    Args:
        root: mount point of the control groups.
        membership: the file that lists the control groups of this process.
    """
    try:
        lines = membership.read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:  # hierarchy:controllers:group; version 2 has one line, without controllers
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "cpu", "cpu,cpuacct"):
            own = (root / controllers).joinpath(*group.strip("/").split("/"))
            for folder in (own, *own.parents):
                if folder.is_relative_to(root):
                    yield from _limit(folder)


def _limit(folder):
    """Yield the quota of one group, if it has one ("max" and -1 mean none). In a container its path may not exist."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()  # version 2
    except (OSError, ValueError):
        try:
            quota, period = [(folder / f"cpu.cfs_{n}_us").read_text(encoding="ascii") for n in ("quota", "period")]
        except OSError:
            return
    if quota != "max" and int(quota) > 0:
        yield int(quota) / int(period)
