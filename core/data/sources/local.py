"""From what the user wrote (a file, a folder, a glob) to the files it means, always in the same order."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from core.artifacts import file_digest
from core.data.config import SourceConfig
from core.data.readers import is_supported, read_batches, unsupported
from core.data.readers.streams import unreadable
from core.data.rows import RowBatch
from core.data.sources.opened import at_most, no_rows
from core.data.sources.places import kind_of, local_path, redacted
from core.data.sources.walking import is_document, matches, nothing_readable, supported, walk
from core.errors import DataError


class SourceFile(NamedTuple):
    """A data file and what to call it."""

    path: Path
    name: str
    """Path relative to the base directory, with forward slashes: what messages call it."""
    origin: str
    """Name within its source, which stays when the source is moved: what rows remember."""


class Expanded(NamedTuple):
    """What one source stands for."""

    files: tuple[SourceFile, ...]
    passed_over: tuple[str, ...]
    """Files in the folder that are neither data we read nor documentation."""
    notes: tuple[str, ...] = ()
    """Links that lead nowhere and pipes, which look like data and are none."""


def expand(source: str, base: Path) -> Expanded:
    """Find the data files of one source, sorted by name.

    In folders and globs, hidden files, READMEs, licences, change logs and ``*.py`` are no data; other files
    of a type that cannot be read are passed over and reported, so that nothing is lost in silence.

    Args:
        source: A file, a folder (searched recursively) or a glob. A URL or a dataset of the hub has no files
            on this machine: nothing is looked up and nothing returned.
        base: Directory that a relative source starts from.

    Raises:
        DataError: If nothing is there, nothing matches, or nothing of it can be read.
    """
    if kind_of(source) != "files":
        return Expanded((), ())
    given, source = source, local_path(source)
    place = base / source
    try:
        if place.is_file():
            if not is_supported(place.name):
                raise unsupported(given, place.name)
            return Expanded((SourceFile(place, _name(place, base), place.name),), ())
        if place.is_dir():
            return _sorted_out(list(walk(place)), place, base, source)
        exists = place.exists()
    except OSError as error:
        raise unreadable(error, given) from error
    if exists:
        raise DataError("is neither a file nor a folder", where=given, fix="name a file, a folder or a glob")
    if glob.has_magic(source):
        return _sorted_out(list(matches(source, base)), base, base, source)
    what = "a link that leads nowhere" if place.is_symlink() else "no such file or folder"
    raise DataError(what, where=given, fix=f"paths are relative to {base}; check the spelling of the path")


def expand_all(sources: Sequence[SourceConfig], base: Path) -> list[Expanded]:
    """Expand every source and make sure that no file belongs to two.

    A file in two sources would count twice, and its weight would be anybody's guess.

    Raises:
        DataError: As ``expand``; also without any source, and when sources overlap.
    """
    if not sources:
        raise DataError("no source is given", where="sources", fix="name at least one file, folder or glob")
    expanded = [expand(source.path, base) for source in sources]
    places = [[(str(file.path.resolve()), file.name) for file in part.files] for part in expanded]
    refuse_overlap(sources, places)
    return expanded


def refuse_overlap(sources: Sequence[SourceConfig], places: Sequence[Iterable[tuple[str, str]]]) -> None:
    """Make sure that no place belongs to two sources.

    Args:
        sources: The sources.
        places: For each of them, its places and what to call them.

    Raises:
        DataError: If one does.
    """
    owners: dict[str, int] = {}
    for number, part in enumerate(places):
        for place, name in part:
            owner = owners.setdefault(place, number)
            if owner != number:
                first, second = redacted(sources[owner].path), redacted(sources[number].path)
                raise DataError(
                    f"{name} belongs to {first!r} and to {second!r}",
                    where=f"sources[{number}]",
                    fix="name each file once; write narrower paths",
                )


class LocalFiles:
    """Files on this machine as an opened source."""

    def __init__(self, source: str, expanded: Expanded, max_rows: int | None) -> None:
        """Take over what ``expand`` found."""
        self.files = tuple(file.origin for file in expanded.files)
        self.places = tuple(str(file.path.resolve()) for file in expanded.files)
        self.passed_over = expanded.passed_over
        self._source, self._found, self._max_rows = source, expanded.files, max_rows
        self._notes = dict.fromkeys(expanded.notes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know; complete once the rows were read."""
        return tuple(self._notes)

    def batches(self) -> Iterator[tuple[str, RowBatch]]:
        """Yield the rows in order with their origin, at most ``max_rows`` of them."""
        return at_most(self._all(), self._max_rows)

    def digests(self) -> list[tuple[str, str]]:
        """Return each origin with the digest of its bytes."""
        return [(file.origin, _digest(file)) for file in self._found]

    def _all(self) -> Iterator[tuple[str, RowBatch]]:
        empty = []
        for file in self._found:
            count = 0
            for batch in read_batches(file.path, file.name, note=self._note):
                count += len(batch.rows)
                yield file.origin, batch
            if not count:
                empty.append(file.name)
        if len(empty) == len(self._found):
            raise no_rows(empty[0] if len(empty) == 1 else self._source)
        for name in empty:
            self._note(f"{name}: holds no rows")

    def _note(self, note: str) -> None:
        self._notes[note] = None


def _digest(file: SourceFile) -> str:
    try:
        return file_digest(file.path)
    except OSError as error:
        raise unreadable(error, file.name) from error


def _sorted_out(found: list[Path], root: Path, base: Path, source: str) -> Expanded:
    names = {_name(path, base): path for path in found if not is_document(_inside(path, root))}
    files: dict[Path, SourceFile] = {}
    for name, path in sorted(names.items()):
        if supported(path):
            # A link beside its target is the same file; the first name wins.
            files.setdefault(path.resolve(), SourceFile(path, name, _origin(path, root)))
    if not files:
        raise nothing_readable(source, len(found), list(names))
    odd = sorted(name for name, path in names.items() if not path.is_file() and _looks_like_data(path))
    rest = sorted(name for name in names.keys() - odd if not is_supported(names[name].name))
    notes = tuple(f"{name}: a link that leads nowhere, or no regular file; passed over" for name in odd)
    return Expanded(tuple(files.values()), tuple(rest), notes)


def _looks_like_data(path: Path) -> bool:
    # What a link without a target was cannot be told by its name.
    return path.is_symlink() or is_supported(path.name)


def _inside(path: Path, root: Path) -> tuple[str, ...]:
    return path.relative_to(root).parts if path.is_relative_to(root) else (path.name,)


def _origin(path: Path, root: Path) -> str:
    # A folder keeps its own name, so that rows of two folders can be told apart.
    return path.relative_to(root.parent).as_posix() if path.is_relative_to(root) else path.name


def _name(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path, base)).as_posix()
