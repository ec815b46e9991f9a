"""One reader per file type; each yields rows with the line they start at."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from core.data.decoding import decoded_chunks, decoded_lines
from core.data.strict_json import array_items, parse
from core.errors import DataError


class RawRow(NamedTuple):
    """One row as it stands in a file."""

    line: int
    """Line of the file at which the row starts, from 1."""
    value: dict[str, Any]
    """The row's fields."""


def read_rows(path: Path, name: str) -> Iterator[RawRow]:
    """Yield the rows of a data file, whatever its type.

    JSONL and CSV are streamed; a JSON file is held in memory.

    Args:
        path: The file.
        name: What to call it in messages.

    Raises:
        DataError: If the type is unknown, the file is empty, or a row is broken; ``where`` is ``file:line``.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise unsupported(name, path.suffix)
    empty = True
    for row in reader(path, name):
        empty = False
        yield row
    if empty:
        raise DataError("holds no rows", where=name, fix="fill the file, or take it out of the sources")


def unsupported(name: str, suffix: str) -> DataError:
    """Return the error for a file type that no reader knows."""
    kind = f"files ending in {suffix}" if suffix else "files without an ending"
    return DataError(f"{kind} cannot be read", where=name, fix=f"convert it to one of {', '.join(SUPPORTED)}")


def _read_jsonl(path: Path, name: str) -> Iterator[RawRow]:
    for number, line in enumerate(decoded_lines(path, name), start=1):
        text = line.rstrip(" \t\r\n")
        if text:
            yield _row(number, parse(text, name, number), name)


def _read_json(path: Path, name: str) -> Iterator[RawRow]:
    text = "".join(decoded_chunks(path, name))
    if not text.strip():
        return
    parse(text, name)
    items = array_items(text)
    if items is None:
        raise DataError(
            "holds no list of rows",
            where=name,
            fix='write [{...}, ...] or {"data": [{...}, ...]}; for one object per line name the file .jsonl',
        )
    for line, value in items:
        yield _row(line, value, name)


def _row(line: int, value: object, name: str) -> RawRow:
    if not isinstance(value, dict):
        raise DataError(
            f"a row must be a JSON object, not {_KINDS.get(type(value), 'a number')}",
            where=f"{name}:{line}",
            fix='write {"instruction": ..., "output": ...} or another accepted shape',
        )
    return RawRow(line, value)


def _read_csv(path: Path, name: str) -> Iterator[RawRow]:
    return _read_table(path, name, ",")


def _read_tsv(path: Path, name: str) -> Iterator[RawRow]:
    return _read_table(path, name, "\t")


def _read_table(path: Path, name: str, delimiter: str) -> Iterator[RawRow]:
    header: list[str] | None = None
    for line, cells in _records(path, name, delimiter):
        if header is None:
            header = _header(cells, f"{name}:{line}")
            continue
        if len(cells) != len(header):
            raise DataError(
                f"the row has {len(cells)} fields, the header has {len(header)}",
                where=f"{name}:{line}",
                fix="put fields that contain the separator or a line break in double quotes",
            )
        yield RawRow(line, dict(zip(header, cells, strict=True)))


def _records(path: Path, name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    table = csv.reader(decoded_lines(path, name), delimiter=delimiter, strict=True)
    while True:
        line = table.line_num + 1
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"not a valid table: {error}",
                where=f"{name}:{line}",
                fix='check the double quotes (a quote inside a field is written "") or convert to .jsonl',
            ) from error
        if any(cell.strip() for cell in cells):
            yield line, cells


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if "" in names:
        raise DataError(
            f"column {names.index('') + 1} has no name",
            where=where,
            fix="name every column in the first line",
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"column {twice[0]!r} stands twice in the header", where=where, fix="rename one of them"
        )
    return names


_KINDS: dict[type, str] = {
    list: "a list",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}
_READERS: dict[str, Callable[[Path, str], Iterator[RawRow]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
}
SUPPORTED = tuple(_READERS)
"""File endings that can be read."""
