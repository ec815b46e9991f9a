"""From a raw row of any shape to turns or a text."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from core.data.config import FieldsConfig, RowFormat
from core.data.formats.found import Found
from core.data.formats.lists import list_field, read_messages, read_sharegpt
from core.data.formats.mapped import read_mapped
from core.data.formats.pairs import (
    begun_pair,
    full_pair,
    half_pair,
    is_preference,
    read_alpaca,
    read_prompt_completion,
    read_question_answer,
)
from core.data.formats.plain import chat_field, read_chat_text, read_text, text_field
from core.data.formats.reasons import PREFERENCE, TOO_DEEP, UNKNOWN_SHAPE, Rejected
from core.data.records import Message, first_problem

ACCEPTED = (
    "{instruction, input, output}, {messages: [{role, content}]}, {conversations: [{from, value}]}, "
    "{prompt, completion}, {question, answer} or {text}; other names can be mapped with fields"
)
"""The shapes, for messages to people."""

_READERS: dict[RowFormat, Callable[[dict[str, Any]], Found]] = {
    "alpaca": read_alpaca,
    "messages": read_messages,
    "sharegpt": read_sharegpt,
    "prompt_completion": read_prompt_completion,
    "question_answer": read_question_answer,
    "chat_text": read_chat_text,
    "text": read_text,
}
_SCALARS = (str, int, float)
_WORDS: dict[RowFormat, str] = {"text": "plain text", "chat_text": "chat text"}


class Converted(NamedTuple):
    """A row's conversation, or its text, before it has an id."""

    format: RowFormat
    messages: tuple[Message, ...]
    """The turns; none of a plain text."""
    text: str | None
    """A plain text as it stands in the row; None of a conversation."""
    metadata: dict[str, Any]
    """The row's ``metadata`` object plus its leftover scalar fields; offered ``tools`` as JSON text."""
    used: tuple[str, ...]
    """The row's fields that were read."""


def convert(row: object, declared: RowFormat = "auto", fields: FieldsConfig | None = None) -> Converted:
    """Turn a raw row into the turns of a conversation, or into a plain text.

    What is said is stripped at both ends; a plain text is left as it is. A blank system turn counts as none.

    Args:
        row: The raw row.
        declared: Its shape, or ``auto`` to look at its keys.
        fields: Which fields mean what, for rows of no known shape; wins over ``declared``.

    Raises:
        Rejected: With a stable reason, if the row is not usable.
    """
    if not isinstance(row, dict):
        raise Rejected(UNKNOWN_SHAPE)
    shape, found = _find(row, declared, fields)
    if found.text is not None:
        return Converted(shape, (), found.text, _metadata(row, found), found.used)
    messages = tuple(turn for turn in found.messages if turn.content or turn.role != "system")
    problem = first_problem(messages)
    if problem:
        raise Rejected(problem)
    return Converted(shape, messages, None, _metadata(row, found), found.used)


def _find(row: dict[str, Any], declared: RowFormat, fields: FieldsConfig | None) -> tuple[RowFormat, Found]:
    if fields is not None:
        return "mapped", read_mapped(row, fields)
    shape = detect(row) if declared == "auto" else declared
    reader = _READERS.get(shape)
    if reader is None:
        # "mapped" without a map says nothing about the row.
        raise Rejected(UNKNOWN_SHAPE)
    return shape, reader(row)


def detect(row: dict[str, Any]) -> RowFormat:
    """Return the shape of a row by its keys, and of a text by how it begins.

    Raises:
        Rejected: If it has none of the known shapes, or compares answers.
    """
    if is_preference(row):
        raise Rejected(PREFERENCE)
    found = list_field(row)
    if found is not None:
        field, turns = found
        first: object = turns[0] if turns else None
        spelled = isinstance(first, dict) and first.get("from") is not None
        return "sharegpt" if spelled or field != "messages" else "messages"
    pair = full_pair(row)
    if pair is not None:
        return pair.format
    return _detect_text(row)


def _detect_text(row: dict[str, Any]) -> RowFormat:
    if chat_field(row):
        return "chat_text"
    pair = begun_pair(row)
    if pair is not None:
        return pair.format
    if text_field(row):
        return "text"
    pair = half_pair(row)
    if pair is not None:
        return pair.format
    raise Rejected(UNKNOWN_SHAPE)


def describe(format: RowFormat, used: Sequence[str]) -> str:  # noqa: A002  (the word of the config)
    """Say in words what rows were taken for.

    Args:
        format: The shape that was found.
        used: Fields that were read.

    Returns:
        Such as "looks like alpaca; using instruction, input, output".
    """
    taken = "mapped by the config" if format == "mapped" else f"looks like {_WORDS.get(format, format)}"
    return f"{taken}; using {', '.join(used)}"


def _metadata(row: dict[str, Any], found: Found) -> dict[str, Any]:
    given, used = row.get("metadata"), found.used
    metadata: dict[str, Any] = {
        key: value
        for key, value in row.items()
        if isinstance(value, _SCALARS)
        and value != ""
        and key not in used
        and key != "id"
        and _is_finite(value)
    }
    try:
        if found.extra:
            metadata |= _storable(found.extra)
        if isinstance(given, dict):
            metadata |= _storable(given)
    except RecursionError as error:
        raise Rejected(TOO_DEEP) from error
    return metadata


def _is_finite(value: object) -> bool:
    # A table's NaN is a missing value, and JSON has no word for it.
    return not isinstance(value, float) or math.isfinite(value)


def _storable(value: Any) -> Any:
    """Return a JSON value without the numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _storable(item) for key, item in value.items() if _is_finite(item)}
    if isinstance(value, list):
        return [_storable(item) for item in value if _is_finite(item)]
    return value
