"""JSON as the standard has it: no NaN, no infinity, no half characters; every error with its line."""

import json
import math
import re
from collections.abc import Iterator
from typing import NoReturn

from core.errors import DataError

_SPACE = re.compile(r"[ \t\n\r]*")


class _BadNumber(ValueError):
    """A number that JSON does not know or a float cannot hold."""


def _refuse(literal: str) -> NoReturn:
    raise _BadNumber(literal)


def _finite(literal: str) -> float:
    value = float(literal)
    return value if math.isfinite(value) else _refuse(literal)


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def parse(text: str, name: str, line: int = 1) -> object:
    """Return the value of a JSON text.

    Args:
        text: The whole text.
        name: The file it comes from, for messages.
        line: The line of the file at which the text starts.

    Raises:
        DataError: If it is not JSON; ``where`` is ``file:line``.
    """
    try:
        value: object = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"not valid JSON: {error.msg} (column {error.colno})",
            where=f"{name}:{line + error.lineno - 1}",
            fix="mend or delete that line",
        ) from error
    except _BadNumber as error:
        raise _bad_number(text, str(error), name, line) from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets nested thousands deep.
        raise DataError(
            f"not usable JSON: {error}", where=f"{name}:{line}", fix="mend or delete that line"
        ) from error
    _refuse_half_characters(text, value, name, line)
    return value


def _bad_number(text: str, literal: str, name: str, line: int) -> DataError:
    # Strings are matched first and skipped: "NaN" as a word in an answer is harmless.
    places = re.finditer(rf'"(?:[^"\\]|\\.)*"|({re.escape(literal)})', text)
    at = next((found.start() for found in places if found.group(1)), 0)
    column = at - text.rfind("\n", 0, at)
    return DataError(
        f"{literal} is not a number that JSON can hold (column {column})",
        where=f"{name}:{line + text.count(chr(10), 0, at)}",
        fix="use null, or delete the field",
    )


def _refuse_half_characters(text: str, value: object, name: str, line: int) -> None:
    # Only an escape can smuggle in a lone surrogate, which no UTF-8 file can hold.
    if "\\ud" not in text and "\\uD" not in text:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "a \\ud... escape stands for half a character (a lone surrogate)",
            where=f"{name}:{line}",
            fix="write both halves, or the character itself",
        ) from error


def array_items(text: str) -> Iterator[tuple[int, object]] | None:
    """Return the items of a JSON array, or of the array under ``data``, with the line of each.

    Args:
        text: Text that ``parse`` has accepted.

    Returns:
        Pairs of line (from 1) and value; None if the text holds no such array.
    """
    start = _array_start(text)
    return None if start is None else _items(text, start)


def _items(text: str, start: int) -> Iterator[tuple[int, object]]:
    line, last, at = 1, 0, _skip(text, start + 1)
    while text[at] != "]":
        line, last = line + text.count("\n", last, at), at
        value, at = _DECODER.raw_decode(text, at)
        yield line, value
        at = _after_comma(text, at)


def _array_start(text: str) -> int | None:
    at = _skip(text, 0)
    if text[at] == "[":
        return at
    if text[at] != "{":
        return None
    at = _skip(text, at + 1)
    while text[at] == '"':
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)
        if key == "data" and text[at] == "[":
            return at
        _, at = _DECODER.raw_decode(text, at)
        at = _after_comma(text, at)
    return None


def _after_comma(text: str, at: int) -> int:
    at = _skip(text, at)
    return _skip(text, at + 1) if text[at] == "," else at


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
