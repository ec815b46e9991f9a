"""Files to rows: one reader per file type, each in bounded memory, each row with the line it starts at."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from core.data.readers.batching import Note, ignore
from core.data.readers.columnar import read_arrow, read_parquet
from core.data.readers.json_array import read_json
from core.data.readers.json_lines import read_json_lines
from core.data.readers.kinds import SUPPORTED, is_supported, split_suffix, unsupported
from core.data.readers.streams import ByteStream, rewindable, unpacked, unreadable
from core.data.readers.table import read_table
from core.data.readers.text import read_text
from core.data.rows import RowBatch
from core.errors import DataError

__all__ = ["SUPPORTED", "is_supported", "read_batches", "read_open", "split_suffix", "unsupported"]


def read_batches(
    path: Path, name: str, *, suffix: str | None = None, note: Note = ignore
) -> Iterator[RowBatch]:
    """Yield the rows of a data file, whatever its type; none if it is empty.

    Args:
        path: The file.
        name: What to call it in messages.
        suffix: Its kind, such as ``.jsonl.gz``, if the name does not tell.
        note: Told what a person should know about a file that is read nevertheless.

    Raises:
        DataError: If the type is unknown, or the file cannot be read or is broken beyond single rows.
    """
    if path.exists() and not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a regular file"
        raise DataError(what, where=name, fix="name a file")
    try:
        raw = path.open("rb")
    except OSError as error:
        raise unreadable(error, name) from error
    with raw:
        yield from read_open(raw, name, suffix or path.name, note)


def read_open(raw: BinaryIO, name: str, file_name: str, note: Note = ignore) -> Iterator[RowBatch]:
    """Yield the rows of an open file; see ``read_batches``.

    Args:
        raw: The file, opened to read bytes.
        name: What to call it in messages.
        file_name: Its name or ending, which tells its kind.
        note: Told what a person should know.
    """
    suffix, packing = split_suffix(file_name)
    if suffix in _TEXTS:
        yield from _TEXTS[suffix](unpacked(raw, packing, name), note)
    elif suffix in _TABLES:
        with rewindable(raw, packing, name) as file:
            yield from _TABLES[suffix](file, name, note)
    else:
        raise unsupported(name, file_name)


_TEXTS: dict[str, Callable[[ByteStream, Note], Iterator[RowBatch]]] = {
    ".jsonl": lambda stream, note: read_json_lines(stream),
    ".ndjson": lambda stream, note: read_json_lines(stream),
    ".json": read_json,
    ".csv": lambda stream, note: read_table(stream, None, note),
    ".tsv": lambda stream, note: read_table(stream, "\t", note),
    ".txt": lambda stream, note: read_text(stream),
    ".md": lambda stream, note: read_text(stream),
}
_TABLES: dict[str, Callable[[BinaryIO, str, Note], Iterator[RowBatch]]] = {
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}
