"""Files of a folder or glob on this machine, whatever links are in the way."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from core.data.readers import is_supported
from core.errors import DataError

_DOCUMENT = re.compile(
    r"(readme|licen[sc]e|notice|changelog|changes|history|contributing|code_of_conduct|security|authors|"
    r"citation|copying)([._-].*)?",
    re.IGNORECASE,
)
_DOCUMENT_ENDINGS = frozenset({"", ".md", ".txt", ".rst", ".html", ".cff"})
# What the datasets library writes beside its data.
_BOOKKEEPING = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})


def is_document(parts: tuple[str, ...]) -> bool:
    """Tell whether a path inside a source, given by its parts, is hidden, documentation or code."""
    hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
    name = parts[-1]
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 - names of remote files, too
    prose = ending in _DOCUMENT_ENDINGS and _DOCUMENT.fullmatch(name) is not None
    return hidden or prose or ending == ".py" or name in _BOOKKEEPING


def walk(folder: Path) -> Iterator[Path]:
    """Yield everything in a folder that is no folder, links included; linked folders are entered once.

    Raises:
        DataError: If a folder cannot be listed.
    """
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        try:
            found = sorted(here.iterdir())
        except OSError as error:
            fix = "check the permissions of the folder"
            raise DataError(f"cannot be listed: {error.strerror}", where=str(here), fix=fix) from error
        waiting += [path for path in found if path.is_dir() and not _is_hidden(path)]
        yield from (path for path in found if not path.is_dir())


def _is_hidden(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name == "__pycache__"


def matches(pattern: str, base: Path) -> Iterator[Path]:
    """Yield what a glob matches, folders excepted.

    Raises:
        DataError: If it is no usable glob.
    """
    anchor = Path(pattern).anchor
    root, relative = (Path(anchor), pattern[len(anchor) :]) if anchor else (base, pattern)
    # Before Python 3.13 a trailing ** means folders only, which nobody intends here.
    try:
        found = root.glob(f"{relative}/*" if relative.endswith("**") else relative)
        yield from (path for path in found if not path.is_dir())
    except (ValueError, NotImplementedError, IndexError) as error:
        raise DataError(
            f"not a usable glob: {error}", where=pattern, fix="write ** between slashes only"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot be listed: {error.strerror}", where=pattern, fix="check permissions"
        ) from error


def nothing_readable(source: str, found: int, unreadable: list[str]) -> DataError:
    """Return the error for a folder or glob without data.

    Args:
        source: What the user wrote.
        found: Files seen.
        unreadable: Those among them that are neither data nor documentation.
    """
    if not found:
        what = "matches no file" if glob.has_magic(source) else "the folder is empty"
    else:
        seen = ", ".join(sorted(unreadable)[:3]) or "only documentation and hidden files"
        what = f"no data file among {found} files ({seen})"
    fix = "put in files ending in .jsonl, .json, .csv, .tsv, .txt, .md, .parquet or .arrow"
    return DataError(what, where=source, fix=fix)


def supported(path: Path) -> bool:
    """Tell whether a path is a file, not a pipe or a dangling link, of a kind that is read."""
    return is_supported(path.name) and path.is_file()
