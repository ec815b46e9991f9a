"""Arrow columns as rows of JSON text."""

import datetime
import decimal
from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.types as types

from core.data.readers.batching import TOO_LONG, Note, Row, unusable
from core.data.rows import MAX_BYTES, MAX_ROW_BYTES, MAX_ROWS
from core.errors import DataError

_UNFIT = "a value that JSON cannot hold"
_OPTIONS = orjson.OPT_NON_STR_KEYS
# What Arrow raises on values that Python lacks: years beyond 9999, unknown time zones, text that is no UTF-8.
_ERRORS = (ValueError, OverflowError, LookupError, TypeError, NotImplementedError, pa.ArrowException)


class Columns:
    """Turns the record batches of one file into rows.

    Dates become ISO 8601, decimals text, NaN and infinity null, maps objects. A column of bytes is text if it
    decodes as UTF-8; otherwise it is left out with a note, like lists and structures that hold bytes (pictures).
    """

    def __init__(self, schema: pa.Schema, name: str, note: Note) -> None:
        """Look at the columns.

        Raises:
            DataError: If two have the same name.
        """
        twice = sorted({each for each in schema.names if schema.names.count(each) > 1})
        if twice:
            raise DataError(f"column {twice[0]!r} stands twice", where=name, fix="rename one of them")
        self._name, self._note = name, note
        self._is_text: dict[str, bool] = {}
        for field in schema:
            if not _is_bytes(field.type) and _holds_bytes(field.type):
                self._leave_out(field.name)

    def rows(self, batch: pa.RecordBatch, first: int) -> Iterator[Row]:
        """Yield the rows of a batch, numbered from ``first``."""
        size = _slice_rows(batch)
        for start in range(0, batch.num_rows, size):
            yield from self._slice(batch.slice(start, size), first + start)

    def _slice(self, batch: pa.RecordBatch, first: int) -> Iterator[Row]:
        names = [name for name in batch.schema.names if self._kept(name, batch.column(name))]
        try:
            columns = [_values(batch.column(name)) for name in names]
        except _ERRORS:
            yield from self._one_by_one(batch, names, first)
            return
        # A table may have rows and yet no column that is read.
        values = zip(*columns, strict=True) if columns else iter([()] * batch.num_rows)
        for line, row in enumerate(values, start=first):
            yield _row(dict(zip(names, row, strict=True)), line)

    def _one_by_one(self, batch: pa.RecordBatch, names: list[str], first: int) -> Iterator[Row]:
        for index in range(batch.num_rows):
            found: dict[str, Any] = {}
            problem = None
            for name in names:
                try:
                    found[name] = _values(batch.column(name).slice(index, 1))[0]
                except _ERRORS as error:
                    problem = problem or _why(error, name)
            row = _row(found, first + index)
            yield unusable(row.text, row.line, problem) if problem else row

    def _kept(self, name: str, column: pa.Array) -> bool:
        if name not in self._is_text and _is_bytes(column.type) and column.null_count < len(column):
            # The first bytes that there are decide for the whole file, so that rows agree about their fields.
            self._is_text[name] = True
            try:
                column.cast(pa.large_string())
            except pa.ArrowInvalid:
                self._leave_out(name)
        return self._is_text.get(name, not _is_bytes(column.type))

    def _leave_out(self, name: str) -> None:
        self._is_text[name] = False
        self._note(f"{self._name}: column {name!r} holds binary data and is left out")


def _values(column: pa.Array) -> list[Any]:
    kind = column.type
    if _is_bytes(kind):
        column = column.cast(pa.large_string())
    elif types.is_timestamp(kind) and kind.unit == "ns":
        column = column.cast(pa.timestamp("us", tz=kind.tz), safe=False)
    return list(column.to_pylist(maps_as_pydicts="lossy"))


def _why(error: Exception, name: str) -> str:
    if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
        return f"field {name!r} is not UTF-8"
    return f"field {name!r}: {_UNFIT}"


def _row(value: dict[str, Any], line: int) -> Row:
    try:
        text = orjson.dumps(value, default=_plain, option=_OPTIONS).decode()
    except TypeError:
        return Row(str(sorted(value))[:200], line, _UNFIT)
    return unusable(text, line, TOO_LONG) if len(text) > MAX_ROW_BYTES else Row(text, line)


def _plain(value: Any) -> Any:
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, datetime.timedelta):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise TypeError(type(value).__name__)


def _slice_rows(batch: pa.RecordBatch) -> int:
    average: int = batch.nbytes // max(batch.num_rows, 1)
    return max(1, min(MAX_ROWS, MAX_BYTES // max(average, 1)))


def _is_bytes(kind: pa.DataType) -> bool:
    plain = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return bool(plain or types.is_binary_view(kind))


def _holds_bytes(kind: pa.DataType) -> bool:
    if _is_bytes(kind):
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return not isinstance(kind, pa.UuidType) and _holds_bytes(kind.storage_type)
    if types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))
