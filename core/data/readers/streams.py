"""Bytes of a data file as they come: decompressed, as UTF-8, with errors a person understands."""

import codecs
import io
import shutil
import tempfile
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow as pa

from core.errors import DataError

CHUNK = 2 << 20
"""Bytes asked for at once."""
_HEAD = 1 << 16
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    # The UTF-32 mark begins with the UTF-16 one, so it is asked for first.
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MAGIC = (
    (b"\x1f\x8b", "it is compressed with gzip; let its name end in .gz"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd; let its name end in .zst"),
    (b"PAR1", "it is a Parquet file; let its name end in .parquet"),
    (b"ARROW1", "it is an Arrow file; let its name end in .arrow"),
    (b"PK\x03\x04", "it is a zip archive or an office document; unpack it, or save it as .csv"),
    (b"%PDF", "it is a PDF; save its text as .txt"),
)


class ByteStream:
    """Bytes from a function that reads some; they can be put back."""

    def __init__(self, read: Callable[[int], bytes], name: str) -> None:
        """Wrap ``read(size)``, which returns nothing at the end only.

        Args:
            read: Returns up to so many bytes.
            name: What messages call the file.
        """
        self._read, self.name, self._back = read, name, b""

    def read(self, size: int = CHUNK) -> bytes:
        """Return some bytes, none at the end.

        Raises:
            DataError: If they cannot be read.
        """
        if self._back:
            data, self._back = self._back, b""
            return data
        try:
            return self._read(size)
        except (OSError, pa.ArrowException, EOFError) as error:
            raise unreadable(error, self.name) from error

    def push_back(self, data: bytes) -> None:
        """Let the next ``read`` return these bytes first."""
        self._back = data + self._back

    def head(self) -> bytes:
        """Return the first bytes without taking them."""
        data = b""
        while len(data) < _HEAD and (chunk := self.read()):
            data += chunk
        self.push_back(data)
        return data[:_HEAD]


def unreadable(error: BaseException, name: str) -> DataError:
    """Return what to tell about a file that cannot be read, or only in part."""
    if isinstance(error, OSError) and error.errno is not None:
        fix = "check that the file exists and its permissions"
        return DataError(f"cannot be read: {error.strerror}", where=name, fix=fix)
    words = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    return DataError(f"is damaged: {words}", where=name, fix="copy or download the file again")


def unpacked(raw: BinaryIO, packing: str | None, name: str) -> ByteStream:
    """Return the bytes of an open file, decompressed as they are read.

    Args:
        raw: The file.
        packing: gzip or zstd, or None. Archives of several members are read to their end.
        name: What messages call the file.
    """
    if packing is None:
        return ByteStream(raw.read, name)
    source: Any = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), packing)
    return ByteStream(source.read, name)


def rewindable(raw: BinaryIO, packing: str | None, name: str) -> BinaryIO:
    """Return a file in which one can jump; of a compressed one, a copy on disk that vanishes when closed.

    Raises:
        DataError: If the file comes over a network that only reads forward.
    """
    if packing is None:
        if not raw.seekable():
            fix = "set streaming: false, so that it is downloaded first"
            raise DataError("cannot be read from a server that only sends whole files", where=name, fix=fix)
        return raw
    stream = unpacked(raw, packing, name)
    copy: Any = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its reader
    shutil.copyfileobj(_Reads(stream), copy)
    copy.seek(0)
    result: BinaryIO = copy
    return result


class _Reads(io.RawIOBase):
    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        return self._stream.read()


def as_utf8(stream: ByteStream) -> ByteStream:
    """Return the same text as UTF-8 without byte order mark; bytes that are no UTF-8 stay as they are.

    UTF-16 and UTF-32 are known by their mark and converted.

    Raises:
        DataError: If it is no text.
    """
    head = stream.head()
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            stream.push_back(stream.read()[len(mark) :])
            return stream if encoding == "utf-8" else _converted(stream, encoding)
    found = next((hint for magic, hint in _MAGIC if head.startswith(magic)), None)
    if found or b"\0" in head:
        what = "is not a text file" + (f": byte {head.index(0)} is zero" if b"\0" in head else "")
        fix = found or "save it as UTF-8 (it may be UTF-16 without byte order mark, or no text at all)"
        raise DataError(what, where=stream.name, fix=fix)
    return stream


def _converted(stream: ByteStream, encoding: str) -> ByteStream:
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1

    def read(size: int) -> bytes:
        nonlocal line
        text = ""
        while not text:
            data = stream.read(size)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                what = f"is not {encoding[:6].upper()} throughout: {error.reason}"
                # Which character comes next cannot be known once one is broken.
                fix = "save the file as UTF-8"
                raise DataError(what, where=f"{stream.name}:{line}", fix=fix) from error
            if not data:
                break
        line += text.count("\n")
        return text.encode()

    return ByteStream(read, stream.name)
