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

    Files that are missing, unreadable or malformed count as no quota.

    Args:
        root: mount point of the control groups.
        membership: the file that lists the control groups of this process.
    """
    for line in _text(membership).splitlines():  # hierarchy:controllers:group; version 2 has one, without controllers
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if group and controllers in ("", "cpu", "cpu,cpuacct"):
            own = (root / controllers).joinpath(*group.strip("/").split("/"))
            for folder in (own, *own.parents):
                if folder.is_relative_to(root):
                    yield from _limit(folder)


def _limit(folder):
    """Yield the quota of one group, if it has one ("max" and -1 mean none). In a container its path may not exist."""
    numbers = _text(folder / "cpu.max").split()  # version 2
    numbers = numbers or [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if len(numbers) == 2 and all(number.isdecimal() and int(number) for number in numbers):
        yield int(numbers[0]) / int(numbers[1])


def _text(path):
    """Contents of a file, in which names may be in any encoding; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return ""
