"""Main memory that is free, as the container sees it; no PyTorch."""

from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
LAYOUTS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)  # fmt: skip
"""Of version 2 and of version 1: the limit, what is used, and what of it are files that are held until room is needed."""


def free_main_memory(cgroups: Path = CGROUPS) -> int:
    """Return the bytes of main memory that are free: of the machine, or up to the container's limit if that is less.

    Args:
        cgroups: Where the limits of control groups are mounted.
    """
    limits = (below_limit(cgroups, *layout) for layout in LAYOUTS)
    return min([int(psutil.virtual_memory().available), *(each for each in limits if each is not None)])


def below_limit(cgroups: Path, limit: str, used: str, details: str, files: str) -> int | None:
    """Return the bytes up to a limit; None if there is none."""
    most, held = number_in(cgroups / limit), number_in(cgroups / used)
    if most is None or held is None:
        return None
    return max(0, most - held + cached_files(cgroups / details, files))


def number_in(path: Path) -> int | None:
    """Return the number a file holds; None for "max", and if there is no such file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def cached_files(path: Path, name: str) -> int:
    """Return the bytes that count as used but are given up for whoever asks; 0 if nothing tells."""
    try:
        counted = dict(line.split(maxsplit=1) for line in path.read_text().splitlines())
        return int(counted.get(name, 0))
    except (OSError, ValueError):
        return 0
