"""Plain text: one document per file; a large one in pieces cut between paragraphs."""

import re
from collections.abc import Iterator

import orjson

from core.data.readers.batching import Row, in_batches, unusable
from core.data.readers.streams import ByteStream, as_utf8
from core.data.rows import RowBatch

WHOLE = 1 << 20
"""Bytes up to which a text stays in one piece."""
PIECE = 1 << 16
"""Most bytes of a piece of a longer text."""
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")


def read_text(stream: ByteStream) -> Iterator[RowBatch]:
    """Yield a text file as rows {"text": ...}.

    Raises:
        DataError: If it is no text or cannot be read.
    """
    yield from in_batches(_rows(as_utf8(stream)))


def _rows(stream: ByteStream) -> Iterator[Row]:
    head = _take(stream, b"", WHOLE + 1)
    if len(head) <= WHOLE:
        yield from _row(head, 1)
        return
    line = 1
    for piece in _pieces(stream, head):
        yield from _row(piece, line)
        line += piece.count(b"\n")


def _row(piece: bytes, line: int) -> Iterator[Row]:
    try:
        text = piece.decode()
    except UnicodeDecodeError as error:
        at = line + piece.count(b"\n", 0, error.start)
        what = f"not UTF-8 (byte 0x{piece[error.start]:02x} on line {at})"
        yield unusable(piece.decode(errors="replace"), line, what)
    else:
        if text.strip():
            yield Row(orjson.dumps({"text": text}).decode(), line)


def _take(stream: ByteStream, start: bytes, wanted: int) -> bytes:
    while len(start) < wanted and (data := stream.read()):
        start += data
    return start


def _pieces(stream: ByteStream, rest: bytes) -> Iterator[bytes]:
    """Cut at the last blank line that fits, else at the last line end, else between two characters."""
    at = 0
    while True:
        if len(rest) - at <= PIECE:
            rest, at = _take(stream, rest[at:], PIECE + 1), 0
            if len(rest) <= PIECE:
                break
        cut = _cut(rest, at)
        yield rest[at:cut]
        at = cut
    if rest:
        yield rest


def _cut(text: bytes, at: int) -> int:
    limit = at + PIECE
    end = text.rfind(b"\n\n", at, limit)
    if end >= 0:
        return end + 2
    ends = [found.end() for found in _BLANK_LINE.finditer(text, at, limit)]
    if ends:
        return ends[-1]
    end = text.rfind(b"\n", at, limit)
    if end > at:
        return end + 1
    while limit > at + 1 and text[limit] & 0xC0 == 0x80:
        limit -= 1
    return limit
