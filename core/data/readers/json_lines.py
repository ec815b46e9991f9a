"""One JSON object per line: cut, not parsed; that is done once, where the row is formatted."""

from collections.abc import Iterator

from core.data.readers.batching import TOO_LONG, Row, checked, in_batches, unusable
from core.data.readers.lines import Overlong, decoded, line_blocks
from core.data.readers.streams import ByteStream, as_utf8
from core.data.rows import MAX_ROW_BYTES, MAX_ROWS, RowBatch

_BLANK = " \t\r\n\ufeff"
"""Also a byte order mark: joined files have one in the middle."""


def read_json_lines(stream: ByteStream) -> Iterator[RowBatch]:
    """Yield the lines that are not blank; one that is not UTF-8 or too long is an unusable row.

    Raises:
        DataError: If the file is no text or cannot be read.
    """
    line = 1
    for block in line_blocks(as_utf8(stream)):
        if isinstance(block, Overlong):
            text, _ = decoded(block.head)
            yield from in_batches([unusable(text, line, TOO_LONG)])
            line += 1
            continue
        yield from _batches(block, line)
        line += block.count(b"\n") + 1


def _batches(block: bytes, line: int) -> Iterator[RowBatch]:
    try:
        text = block.decode()
    except UnicodeDecodeError:
        yield from in_batches(_one_by_one(block, line))
        return
    if len(block) > MAX_ROW_BYTES:
        yield from in_batches(_one_by_one(block, line))
        return
    rows = [row.strip(_BLANK) for row in text.split("\n")]
    lines = list(range(line, line + len(rows)))
    if not all(rows):
        kept = [(row, number) for row, number in zip(rows, lines, strict=True) if row]
        rows, lines = [row for row, _ in kept], [number for _, number in kept]
    for start in range(0, len(rows), MAX_ROWS):
        part = rows[start : start + MAX_ROWS]
        yield RowBatch(part, lines[start : start + MAX_ROWS], [None] * len(part))


def _one_by_one(block: bytes, line: int) -> Iterator[Row]:
    for number, raw in enumerate(block.split(b"\n"), start=line):
        text, problem = decoded(raw)
        text = text.strip(_BLANK)
        if problem:
            yield unusable(text, number, problem)
        elif text:
            yield unusable(text, number, TOO_LONG) if len(raw) > MAX_ROW_BYTES else checked(text, number)
