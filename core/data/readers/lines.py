"""Text cut into lines, block by block, however long a line is."""

from collections.abc import Iterator
from typing import NamedTuple

from core.data.readers.streams import ByteStream
from core.data.rows import EXCERPT, MAX_ROW_BYTES


class Overlong(NamedTuple):
    """A line too long to be kept."""

    head: bytes
    """How it begins."""


def line_blocks(stream: ByteStream) -> Iterator[bytes | Overlong]:
    """Yield runs of whole lines without the last line feed; a line too long for memory as its beginning.

    Only a line feed ends a line: other Unicode separators may stand inside a JSON string.
    """
    rest = b""
    while chunk := stream.read():
        end = chunk.rfind(b"\n")
        if end >= 0:
            yield rest + chunk[:end]
            rest = chunk[end + 1 :]
            continue
        rest += chunk
        if len(rest) > MAX_ROW_BYTES:
            yield Overlong(rest[: 4 * EXCERPT])
            rest = b""
            if not _skip_line(stream):
                return
    if rest:
        yield rest


def _skip_line(stream: ByteStream) -> bool:
    while chunk := stream.read():
        end = chunk.find(b"\n")
        if end >= 0:
            if end + 1 < len(chunk):
                stream.push_back(chunk[end + 1 :])
            return True
    return False


def decoded(line: bytes) -> tuple[str, str | None]:
    """Return the text of bytes and, if they are not UTF-8, why not; then the text is only for showing."""
    try:
        return line.decode(), None
    except UnicodeDecodeError as error:
        column = len(line[: error.start].decode()) + 1
        return line.decode(errors="replace"), f"not UTF-8 (byte 0x{line[error.start]:02x} at column {column})"
