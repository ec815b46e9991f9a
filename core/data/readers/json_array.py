"""A JSON file that holds a list of rows, or an object with such a list; streamed."""

import json
from collections.abc import Iterator

from core.data.readers.batching import Note, Row, in_batches
from core.data.readers.json_lines import read_json_lines
from core.data.readers.json_window import JsonWindow
from core.data.readers.streams import ByteStream, as_utf8
from core.data.rows import MAX_ROW_BYTES, RowBatch
from core.errors import DataError

HOLDERS = ("data", "rows", "examples", "train")
"""Fields of an object under which the list of rows may stand."""


def read_json(stream: ByteStream, note: Note) -> Iterator[RowBatch]:
    """Yield the rows of a JSON file.

    Raises:
        DataError: If it holds no list of rows, or is broken somewhere.
    """
    stream = as_utf8(stream)
    if _holds_lines(stream):
        note(f"{stream.name}: holds one object per line; read like a .jsonl file")
        yield from read_json_lines(stream)
        return
    window = JsonWindow(stream)
    if window.peek():
        yield from in_batches(_rows(window, note, stream.name))


def _holds_lines(stream: ByteStream) -> bool:
    head, first, rest = b"", b"", b""
    while len(head) < MAX_ROW_BYTES and not rest.strip():
        chunk = stream.read()
        head += chunk
        first, _, rest = head.lstrip().partition(b"\n")
        if not chunk:
            break
    stream.push_back(head)
    return first.startswith(b"{") and bool(rest.strip()) and _is_object(first)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode(errors="replace"), parse_int=str), dict)
    except (ValueError, RecursionError):
        return False


def _rows(window: JsonWindow, note: Note, name: str) -> Iterator[Row]:
    start = window.peek()
    if start == "[":
        yield from _items(window)
    elif start == "{":
        yield from _held(window, note, name)
    else:
        # Tells broken JSON from a lone value.
        window.value()
        raise _no_list(name)
    if window.peek():
        raise window.broken("the text goes on after its end")


def _items(window: JsonWindow) -> Iterator[Row]:
    window.take("[")
    if window.peek() == "]":
        window.take("]")
        return
    while True:
        yield Row(*window.value())
        if window.take(",]") == "]":
            return


def _held(window: JsonWindow, note: Note, name: str) -> Iterator[Row]:
    found, separator = False, window.take("{")
    if window.peek() == "}":
        separator = window.take("}")
    while separator != "}":
        if window.peek() != '"':
            window.take('"')
        key = window.value().text.strip('"')
        window.take(":")
        is_list = window.peek() == "["
        if is_list and key in HOLDERS:
            found = True
            yield from _items(window)
        else:
            window.value()
            if is_list:
                note(f"{name}: the list {key!r} is left out; rows are read from {', '.join(HOLDERS)}")
        separator = window.take(",}")
    if not found:
        raise _no_list(name)


def _no_list(name: str) -> DataError:
    return DataError(
        "holds no list of rows",
        where=name,
        fix='write [{...}, ...] or {"data": [{...}, ...]}; for one object per line name the file .jsonl',
    )
