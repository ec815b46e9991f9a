"""Main memory that is free, as the container or the job sees it; no PyTorch."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

CGROUPS = Path("/sys/fs/cgroup")
MEMBER = Path("/proc/self/cgroup")


class Layout(NamedTuple):
    """Where one version of control groups says what of main memory a group may take."""

    folder: str
    """Where the memory of groups is told, below the mount."""
    controller: str
    """How its lines in the process's list of groups are marked."""
    limit: str
    used: str
    details: str
    files: str
    """What the details call files that are held until room is needed, which count as used."""


LAYOUTS = (
    Layout("", "", "memory.max", "memory.current", "memory.stat", "inactive_file"),
    Layout(
        "memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file"
    ),
)  # fmt: skip
"""Versions 2 and 1."""


def free_main_memory(cgroups: Path = CGROUPS, member: Path = MEMBER) -> int:
    """Return the bytes of main memory that are free: of the machine, or up to the lowest limit above this process.

    A container sees its own group as the root; a job of a batch system is further down, and each group on the way
    may have a limit.

    Args:
        cgroups: Where control groups are mounted.
        member: Lists the groups of this process.
    """
    limits = (
        below_limit(group, layout)
        for layout in LAYOUTS
        for group in groups_above(cgroups / layout.folder, own_group(member, layout.controller))
    )
    return min([int(psutil.virtual_memory().available), *(each for each in limits if each is not None)])


def own_group(member: Path, controller: str) -> str:
    """Return the path of this process's group, "" if nothing tells.

    Args:
        member: Lines such as ``4:cpu,memory:/jobs/7``; version 2 names no controllers.
        controller: Whose path is wanted.
    """
    try:
        lines = [line.split(":", 2) for line in member.read_text().splitlines()]
    except OSError:
        return ""
    return next((parts[2] for parts in lines if len(parts) == 3 and controller in parts[1].split(",")), "")


def groups_above(root: Path, group: str) -> Iterator[Path]:
    """Yield the folders of a group and of the groups around it, up to the root."""
    place = Path(group.strip("/"))
    # A group outside of what is mounted here begins with "..".
    inside = () if ".." in place.parts else (place, *place.parents)
    yield from dict.fromkeys((root, *(root / each for each in inside)))


def below_limit(group: Path, layout: Layout) -> int | None:
    """Return the bytes up to a group's limit; None if there is none."""
    most, held = number_in(group / layout.limit), number_in(group / layout.used)
    if most is None or held is None:
        return None
    return max(0, most - held + cached_files(group / layout.details, layout.files))


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
