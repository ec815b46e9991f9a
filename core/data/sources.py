"""From what the user wrote (a file, a folder, a glob) to the files it means, always in the same order."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from core.artifacts import file_digest
from core.data.config import SourceConfig
from core.data.readers import SUPPORTED, unsupported
from core.errors import DataError

_DOCUMENTS = frozenset({"README", "LICENSE", "LICENCE", "NOTICE"})
_NO_DATA = frozenset({".py", ".md"})


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


def expand(source: str, base: Path) -> Expanded:
    """Find the data files of one source, sorted by name.

    In folders and globs, hidden files, READMEs, licences, ``*.md`` and ``*.py`` are no data; other files
    of a type that cannot be read are passed over and reported, so that nothing is lost in silence.

    Args:
        source: A file, a folder (searched recursively) or a glob.
        base: Directory that a relative source starts from.

    Raises:
        DataError: If nothing is there, nothing matches, or nothing of it can be read.
    """
    place = base / source
    if place.is_file():
        if place.suffix.lower() not in SUPPORTED:
            raise unsupported(source, place.suffix)
        return Expanded((SourceFile(place, _name(place, base), place.name),), ())
    if place.is_dir():
        return _sorted_out([p for p in place.rglob("*") if p.is_file()], place, base, source)
    if glob.has_magic(source):
        found = _matches(source, base)
        return _sorted_out([p for p in found if p.is_file()], base, base, source)
    raise DataError(
        "no such file or folder",
        where=source,
        fix=f"paths are relative to {base}; check the spelling of the path",
    )


def expand_all(sources: Sequence[SourceConfig], base: Path) -> list[Expanded]:
    """Expand every source and make sure that no file belongs to two.

    A file in two sources would count twice, and its weight would be anybody's guess.

    Raises:
        DataError: As ``expand``; also without any source, and when sources overlap.
    """
    if not sources:
        raise DataError("no source is given", where="sources", fix="name at least one file, folder or glob")
    owners: dict[Path, int] = {}
    expanded = [expand(source.path, base) for source in sources]
    for number, part in enumerate(expanded):
        for file in part.files:
            owner = owners.setdefault(file.path.resolve(), number)
            if owner != number:
                raise DataError(
                    f"{file.name} belongs to {sources[owner].path!r} and to {sources[number].path!r}",
                    where=f"sources[{number}]",
                    fix="name each file once; write narrower paths",
                )
    return expanded


def source_digests(sources: Sequence[SourceConfig], base: Path) -> list[tuple[str, str]]:
    """Return name and digest of every source file's bytes, in the order they are read.

    A phase puts them into its cache key: edited data is read again, moved data is not.

    Raises:
        DataError: As ``expand_all``.
    """
    return [
        (file.origin, file_digest(file.path)) for part in expand_all(sources, base) for file in part.files
    ]


def _matches(pattern: str, base: Path) -> Iterator[Path]:
    anchor = Path(pattern).anchor
    root, relative = (Path(anchor), pattern[len(anchor) :]) if anchor else (base, pattern)
    # Before Python 3.13 a trailing ** means folders only, which nobody intends here.
    try:
        yield from root.glob(f"{relative}/*" if relative.endswith("**") else relative)
    except ValueError as error:
        raise DataError(
            f"not a usable glob: {error}", where=pattern, fix="write ** between slashes only"
        ) from error


def _sorted_out(found: list[Path], root: Path, base: Path, source: str) -> Expanded:
    names = {_name(path, base): path for path in found if not _is_document(path, root)}
    files: dict[Path, SourceFile] = {}
    for name, path in sorted(names.items()):
        if path.suffix.lower() in SUPPORTED:
            # A link beside its target is the same file; the first name wins.
            files.setdefault(path.resolve(), SourceFile(path, name, _origin(path, root)))
    if not files:
        raise _nothing_readable(source, found, list(names))
    rest = sorted(name for name, path in names.items() if path.suffix.lower() not in SUPPORTED)
    return Expanded(tuple(files.values()), tuple(rest))


def _is_document(path: Path, root: Path) -> bool:
    inside = path.relative_to(root).parts if path.is_relative_to(root) else (path.name,)
    hidden = any(part.startswith(".") or part == "__pycache__" for part in inside)
    return hidden or path.suffix.lower() in _NO_DATA or path.name.split(".")[0].upper() in _DOCUMENTS


def _nothing_readable(source: str, found: list[Path], unreadable: list[str]) -> DataError:
    if not found:
        what = "matches no file" if glob.has_magic(source) else "the folder is empty"
    else:
        seen = ", ".join(sorted(unreadable)[:3]) or "only documentation and hidden files"
        what = f"no data file among {len(found)} files ({seen})"
    return DataError(what, where=source, fix=f"put in files ending in {', '.join(SUPPORTED)}")


def _origin(path: Path, root: Path) -> str:
    # A folder keeps its own name, so that rows of two folders can be told apart.
    return path.relative_to(root.parent).as_posix() if path.is_relative_to(root) else path.name


def _name(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path, base)).as_posix()
