"""Tables as text: CSV and TSV, streamed."""

import csv
from collections.abc import Iterator

import orjson

from core.data.readers.batching import TOO_LONG, Note, Row, checked, in_batches, unusable
from core.data.readers.lines import Overlong, decoded, line_blocks
from core.data.readers.streams import ByteStream, as_utf8
from core.data.rows import MAX_ROW_BYTES, RowBatch
from core.errors import DataError

# The module has one limit for the whole process, of 128 kB; a text in a cell may well be longer.
csv.field_size_limit(MAX_ROW_BYTES)


def read_table(stream: ByteStream, delimiter: str | None, note: Note) -> Iterator[RowBatch]:
    """Yield the rows of a table whose first line names the columns.

    Args:
        stream: The file.
        delimiter: What separates columns; None takes the comma, or a semicolon or tab if the header has no comma.
        note: Told when it is no comma.

    Raises:
        DataError: If the header is unusable, or a quote is never closed.
    """
    stream = as_utf8(stream)
    head = stream.head()
    if b"\r" in head and b"\n" not in head:
        stream = _with_line_feeds(stream)
    if delimiter is None:
        delimiter = _separator(head)
        if delimiter != ",":
            note(f"{stream.name}: columns are separated by {'tabs' if delimiter == chr(9) else 'semicolons'}")
    yield from in_batches(_rows(stream, delimiter))


def _with_line_feeds(stream: ByteStream) -> ByteStream:
    return ByteStream(lambda size: stream.read(size).replace(b"\r", b"\n"), stream.name)


def _separator(head: bytes) -> str:
    first = head.lstrip().split(b"\n", 1)[0]
    return next((each for each in (",", ";", "\t") if each.encode() in first), ",")


def _rows(stream: ByteStream, delimiter: str) -> Iterator[Row]:
    lines = _Lines(stream)
    header: list[str] | None = None
    for line, cells, problem in _records(lines, delimiter):
        if header is None:
            header = _header(cells, problem, f"{stream.name}:{line}")
        elif problem:
            yield unusable(lines.last or delimiter.join(cells), line, problem)
        elif len(cells) != len(header):
            what = f"the row has {len(cells)} fields, the header has {len(header)}"
            yield unusable(delimiter.join(cells), line, what)
        else:
            yield checked(orjson.dumps(dict(zip(header, cells, strict=True))).decode(), line)


class _Lines:
    """Lines for the csv module, and what was wrong with those of the current record."""

    def __init__(self, stream: ByteStream) -> None:
        self._lines = self._cut(stream)
        self.name, self.count, self.ended = stream.name, 0, False
        self.last = ""
        self.problem: str | None = None

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        try:
            self.last, problem = next(self._lines)
        except StopIteration:
            self.ended = True
            raise
        self.count += 1
        self.problem = self.problem or problem
        return self.last + "\n"

    def _cut(self, stream: ByteStream) -> Iterator[tuple[str, str | None]]:
        for block in line_blocks(stream):
            if isinstance(block, Overlong):
                yield decoded(block.head)[0], TOO_LONG
                continue
            try:
                lines = block.decode().split("\n")
            except UnicodeDecodeError:
                yield from (decoded(line) for line in block.split(b"\n"))
            else:
                yield from ((line, None) for line in lines)


def _records(lines: _Lines, delimiter: str) -> Iterator[tuple[int, list[str], str | None]]:
    table = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line, lines.problem = lines.count + 1, None
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            # The module starts afresh with the next line, unless the open quote has swallowed the rest.
            if lines.ended or "field limit" in str(error):
                raise _unclosed(f"{lines.name}:{line}") from error
            yield line, [], lines.problem or "a double quote in the wrong place"
            continue
        if lines.problem or any(cell.strip() for cell in cells):
            yield line, cells, lines.problem


def _unclosed(where: str) -> DataError:
    return DataError(
        "not a valid table: a double quote is opened and never closed",
        where=where,
        fix='close it (a quote inside a field is written ""), or convert the file to .jsonl',
    )


def _header(cells: list[str], problem: str | None, where: str) -> list[str]:
    if problem:
        raise DataError(f"the header cannot be read: {problem}", where=where, fix="save the file as UTF-8")
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
