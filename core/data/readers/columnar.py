"""Parquet files, and Arrow files in both of their layouts."""

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from core.data.readers.batching import Note, Row, in_batches
from core.data.readers.columns import Columns
from core.data.rows import MAX_BYTES, MAX_ROWS, RowBatch
from core.errors import DataError

_OLD_FEATHER = b"FEA1"
_ARROW_FILE = b"ARROW1"


def read_parquet(file: BinaryIO, name: str, note: Note) -> Iterator[RowBatch]:
    """Yield the rows of a Parquet file; their line is their number, from 1.

    Raises:
        DataError: If it is damaged.
    """
    try:
        yield from in_batches(_parquet_rows(file, name, note))
    except _DAMAGE as error:
        raise _damaged("Parquet", error, name) from error


def read_arrow(file: BinaryIO, name: str, note: Note) -> Iterator[RowBatch]:
    """Yield the rows of an Arrow file or stream; their line is their number, from 1.

    Raises:
        DataError: If it is damaged.
    """
    try:
        yield from in_batches(_arrow_rows(file, name, note))
    except _DAMAGE as error:
        raise _damaged("Arrow", error, name) from error


def _parquet_rows(file: BinaryIO, name: str, note: Note) -> Iterator[Row]:
    table = pq.ParquetFile(file)
    size = sum(table.metadata.row_group(number).total_byte_size for number in range(table.num_row_groups))
    average = size // max(table.metadata.num_rows, 1)
    columns, line = Columns(table.schema_arrow, name, note), 1
    wanted = max(1, min(MAX_ROWS, MAX_BYTES // max(average, 1)))
    for batch in table.iter_batches(batch_size=wanted, use_threads=False):
        yield from columns.rows(batch, line)
        line += batch.num_rows


def _arrow_rows(file: BinaryIO, name: str, note: Note) -> Iterator[Row]:
    head = file.read(len(_ARROW_FILE))
    file.seek(0)
    if not head:
        return
    if head.startswith(_OLD_FEATHER):
        raise DataError("is a Feather file of version 1", where=name, fix="write it again with version 2")
    batches = _from_file(file) if head == _ARROW_FILE else _from_stream(file)
    columns, line = None, 1
    for batch in batches:
        # Nothing else keeps offsets of a damaged file from pointing outside of its memory.
        batch.validate(full=True)
        columns = columns or Columns(batch.schema, name, note)
        yield from columns.rows(batch, line)
        line += batch.num_rows


def _from_file(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    with pa.ipc.open_file(file) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _from_stream(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    with pa.ipc.open_stream(file) as reader:
        yield from reader


_DAMAGE = (pa.ArrowException, OSError, ValueError, EOFError, KeyError, TypeError, MemoryError)


def _damaged(kind: str, error: BaseException, name: str) -> DataError:
    words = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
    return DataError(
        f"cannot be read as {kind}: {words[:200]}", where=name, fix="write or download the file again"
    )
