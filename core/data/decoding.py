"""Text files of unknown origin, decoded as a stream; a byte that does not fit is named by its place."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from core.errors import DataError

_CHUNK = 1 << 20
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    # The UTF-32 mark begins with the UTF-16 one, so it is asked for first.
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decoded_chunks(path: Path, name: str) -> Iterator[str]:
    """Yield a file's text in pieces.

    UTF-8 is read with or without byte order mark, UTF-16 and UTF-32 with one.

    Args:
        path: The file.
        name: What to call it in messages.

    Raises:
        DataError: If it cannot be read, is not text, or holds bytes that do not decode.
    """
    try:
        yield from _decode(path, name)
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror}",
            where=name,
            fix="check that the file exists and its permissions",
        ) from error


def decoded_lines(path: Path, name: str) -> Iterator[str]:
    """Yield a file's lines with their line feed, the last one perhaps without.

    Only a line feed ends a line: other Unicode separators may stand inside a JSON string.

    Raises:
        DataError: As ``decoded_chunks``.
    """
    rest = ""
    for chunk in decoded_chunks(path, name):
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            yield line + "\n"
    if rest:
        yield rest


def _decode(path: Path, name: str) -> Iterator[str]:
    with path.open("rb") as stream:
        chunk = stream.read(_CHUNK)
        mark, encoding = _encoding(chunk, name)
        decoder = codecs.getincrementaldecoder(encoding)()
        chunk, position, line = chunk[len(mark) :], len(mark), 1
        while True:
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise _undecodable(error, position + len(chunk), line, name) from error
            yield text
            if not chunk:
                return
            position += len(chunk)
            line += text.count("\n")
            chunk = stream.read(_CHUNK)


def _encoding(head: bytes, name: str) -> tuple[bytes, str]:
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return mark, encoding
    if b"\0" in head:
        raise DataError(
            f"is not a text file: byte {head.index(0)} is zero",
            where=name,
            fix="save it as UTF-8 (it may be UTF-16 without byte order mark, or compressed)",
        )
    return b"", "utf-8"


def _undecodable(error: UnicodeDecodeError, end: int, line: int, name: str) -> DataError:
    # error.object is what the decoder kept of the last chunk plus this one: count back from its end.
    offset = end - len(error.object) + error.start
    line += error.object[: error.start].decode(error.encoding, errors="ignore").count("\n")
    return DataError(
        f"byte {offset} (0x{error.object[error.start]:02x}) is not {error.encoding.upper()}: {error.reason}",
        where=f"{name}:{line}",
        fix="save the file as UTF-8",
    )
