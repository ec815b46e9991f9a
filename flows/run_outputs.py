"""Where a run may write inside its workspace."""

from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import NamedTuple

RESERVED = ("data", "metrics", "gates", "docs", "bundle", "logs", ".factory", "report.html", "manifest.json")
"""Places in the workspace that no output setting may name."""


class Problem(NamedTuple):
    """One thing in the settings to mend."""

    keys: tuple[str, ...]
    """Dotted keys it concerns: first where to look, then what it contradicts or what was meant."""
    what: str


def stays_inside(text: str) -> bool:
    """Tell whether a path is relative and stays below the folder it starts from."""
    path = PurePosixPath(text)
    escapes = path.is_absolute() or ".." in path.parts or PureWindowsPath(text).drive or "\\" in text
    return bool(path.parts) and not escapes and not text.startswith("~")


def taken_folders(folders: dict[str, str]) -> Iterator[Problem]:
    """Find outputs that would replace what the run itself keeps in the workspace."""
    for key, text in folders.items():
        place = PurePosixPath(text)
        taken = next((name for name in RESERVED if place.is_relative_to(name)), None)
        if taken or place == PurePosixPath("models"):
            yield Problem(
                (key,), f"'{text}' is where the run keeps its own files; choose a folder below models/"
            )


def shared_folders(folders: dict[str, str]) -> Iterator[Problem]:
    """Find outputs that would overwrite each other: one folder equal to or inside another."""
    places = [(key, PurePosixPath(text)) for key, text in folders.items() if stays_inside(text)]
    for index, (key, place) in enumerate(places):
        for other, elsewhere in places[:index]:
            if place.is_relative_to(elsewhere) or elsewhere.is_relative_to(place):
                yield Problem(
                    (key, other), f"'{place}' and {other} '{elsewhere}' overlap; give each its own folder"
                )
