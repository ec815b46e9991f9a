"""Tables of many rows on disk, in parts of a size that always fits in memory.

A part is a row group of one Parquet file. It is also the unit of work: workers get the file's path and a part's
number, never rows. Where a part ends depends on its rows alone, so the bytes do not depend on who wrote them.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

PART_ROWS = 16384
PART_BYTES = 32 << 20
_NOTES = b"factory"


class Part(NamedTuple):
    """One part of a table file."""

    path: Path
    number: int


class PartWriter:
    """Writes a table part by part; use it as a context manager."""

    def __init__(self, path: Path, schema: pa.Schema, notes: Any = None) -> None:
        """Create the file.

        Args:
            path: The file; callers write to a temporary name.
            schema: Columns of every table to come.
            notes: JSON value kept with the file, see ``notes_of``.
        """
        text = json.dumps(notes, ensure_ascii=False, sort_keys=True).encode()
        self._file = pq.ParquetWriter(path, schema.with_metadata({_NOTES: text}), compression="zstd")
        self._schema = schema
        self._waiting: list[pa.Table] = []
        self._rows = self._bytes = 0
        self.rows = 0
        """Rows written so far."""

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what waits and close the file."""
        if error is None:
            self._flush()
        self._file.close()

    def write(self, table: pa.Table) -> None:
        """Add rows; they reach the disk once a part is full."""
        for start in range(0, table.num_rows, PART_ROWS):
            piece = table.slice(start, PART_ROWS)
            if self._waiting and (
                self._rows + piece.num_rows > PART_ROWS or self._bytes + piece.nbytes > PART_BYTES
            ):
                self._flush()
            self._waiting.append(piece)
            self._rows += piece.num_rows
            self._bytes += piece.nbytes
        self.rows += table.num_rows

    def _flush(self) -> None:
        if self._waiting:
            self._file.write_table(
                pa.concat_tables(self._waiting).cast(self._schema), row_group_size=PART_ROWS
            )
        self._waiting, self._rows, self._bytes = [], 0, 0


def parts_of(path: Path) -> list[Part]:
    """List the parts of a file."""
    return [Part(path, number) for number in range(pq.ParquetFile(path).num_row_groups)]


def read_part(part: Part, columns: Sequence[str] | None = None) -> pa.Table:
    """Read some columns of one part."""
    with pq.ParquetFile(part.path) as file:
        return file.read_row_group(part.number, columns=None if columns is None else list(columns))


def read_parts(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Read a file part by part."""
    for part in parts_of(path):
        yield read_part(part, columns)


def read_column(path: Path, column: str) -> pa.ChunkedArray:
    """Read one column whole."""
    return pq.read_table(path, columns=[column]).column(0)


def notes_of(path: Path) -> Any:
    """Return the JSON value kept with a file."""
    return json.loads(pq.read_schema(path).metadata[_NOTES])
