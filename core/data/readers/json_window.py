"""A JSON text read through a window: values of any length are found, none has to fit into memory."""

import codecs
import json
import re
from typing import NamedTuple

from core.data.readers.batching import TOO_LONG
from core.data.readers.streams import CHUNK, ByteStream
from core.data.rows import EXCERPT, MAX_ROW_BYTES
from core.errors import DataError

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'["{}\[\]]')
_QUOTED = re.compile(r'["\\]')
_RAW_BYTE = re.compile("[\udc80-\udcff]")


class Value(NamedTuple):
    """One value as it stands in the text."""

    text: str
    line: int
    problem: str | None = None


class JsonWindow:
    """The part of a text that is being looked at; it grows at its end and forgets its start."""

    def __init__(self, stream: ByteStream) -> None:
        """Start before the first character of a UTF-8 stream."""
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._text, self._at, self._ended, self._moved = "", 0, False, False
        self._odd: list[str] = []
        # Only the end of a value matters here, so numbers are not converted.
        self._find = json.JSONDecoder(
            parse_constant=self._odd.append, parse_int=str, parse_float=str
        ).raw_decode
        self.line = 1

    def peek(self) -> str:
        """Return the next character that is not blank without taking it, nothing at the end."""
        while True:
            self._advance(_end_of_space(self._text, self._at))
            if self._at < len(self._text) or not self._fill():
                return self._text[self._at : self._at + 1]

    def take(self, wanted: str) -> str:
        """Take the next character that is not blank, which must be one of those wanted.

        Raises:
            DataError: If it is another one.
        """
        found = self.peek()
        if not found or found not in wanted:
            raise self.broken(f"{' or '.join(wanted)} expected")
        self._advance(self._at + 1)
        return found

    def value(self) -> Value:
        """Take the next value.

        Raises:
            DataError: If it is no JSON.
        """
        self.peek()
        while True:
            self._odd.clear()
            try:
                _, end = self._find(self._text, self._at)
            except RecursionError:
                return self._passed("nested too deeply")
            except json.JSONDecodeError as error:
                if self._ended or not self._is_cut(error):
                    raise self.broken(error.msg, error.pos) from error
            else:
                # A number may go on behind the edge of the window, which may cut "0.5" after its point.
                if end + 2 < len(self._text) or self._ended:
                    return self._taken(end)
            if len(self._text) - self._at > MAX_ROW_BYTES:
                return self._passed(TOO_LONG)
            self._fill()

    def broken(self, what: str, position: int | None = None) -> DataError:
        """Return the error for a place (here, if none is given) after which nothing can be trusted."""
        position = self._at if position is None else position
        line = self.line + self._text.count("\n", self._at, position)
        start = self._text.rfind("\n", 0, position) + 1
        # The beginning of the line may have left the window.
        where = f" (column {position - start + 1})" if start or not self._moved else ""
        fix = "mend it; in a .jsonl file, broken rows would be told from sound ones"
        return DataError(f"not valid JSON: {what}{where}", where=f"{self._stream.name}:{line}", fix=fix)

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        near_the_edge = error.pos >= len(self._text) - 16
        return near_the_edge or error.msg.startswith("Unterminated string")

    def _taken(self, end: int) -> Value:
        text, line = self._text[self._at : end], self.line
        self._advance(end)
        if len(text) > MAX_ROW_BYTES:
            return Value(text[:EXCERPT], line, TOO_LONG)
        if self._odd:
            return Value(text[:EXCERPT], line, f"{self._odd[0]} is not a number that JSON can hold")
        if not text.isascii() and (bad := _RAW_BYTE.search(text)):
            shown = text[:EXCERPT].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            return Value(shown, line, f"not UTF-8 (byte 0x{ord(bad[0]) - 0xDC00:02x})")
        # Line feeds stand between tokens only, never inside a JSON string.
        return Value(text.replace("\n", " ").replace("\r", " "), line)

    def _passed(self, problem: str) -> Value:
        """Skip a value without keeping it, by its brackets and quotes alone."""
        shown = self._text[self._at : self._at + EXCERPT].encode("utf-8", "replace").decode()
        line, depth, quoted = self.line, 0, False
        while True:
            found = (_QUOTED if quoted else _PLAIN).search(self._text, self._at)
            if found is None or (found[0] == "\\" and found.end() == len(self._text)):
                self._advance(found.start() if found else len(self._text))
                if not self._fill():
                    raise self.broken("the text ends inside a value", len(self._text))
                continue
            self._advance(found.end() + (found[0] == "\\"))
            if found[0] == '"':
                quoted = not quoted
            elif found[0] != "\\":
                depth += 1 if found[0] in "{[" else -1
            if depth <= 0 and not quoted:
                return Value(shown, line, problem)

    def _advance(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _fill(self) -> bool:
        if self._ended:
            return False
        # Reading as much again as there is keeps the repeated looks at a long value linear.
        self._moved = self._moved or self._at > 0
        wanted, parts = max(CHUNK, len(self._text) - self._at), [self._text[self._at :]]
        while wanted > 0 and not self._ended:
            data = self._stream.read()
            self._ended = not data
            parts.append(self._decode(data, final=not data))
            wanted -= len(data)
        self._text, self._at = "".join(parts), 0
        return True


def _end_of_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
