"""All texts of a row in one list, and the row again from a changed list: what redaction goes through.

What is trained is the turns and the arguments of tool calls; metadata is written beside them and copied wherever
the splits go. All of it counts.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from core.data.quality import Prepared, redact
from core.data.records import Document, Message, Record, ToolCall

_DIGITS = 9
"""Whole numbers of fewer digits are no phone, card or identity number."""


def texts_in(record: Record) -> list[str]:
    """Return every text of a row: turns, arguments of tool calls, metadata."""
    found = [record.text] if isinstance(record, Document) else []
    for turn in () if isinstance(record, Document) else record.messages:
        found.append(turn.content)
        for call in turn.tool_calls:
            found += _leaves(orjson.loads(call.arguments))
    return [*found, *_leaves(record.metadata)]


def redacted(records: Sequence[Record], prepared: Prepared) -> list[Record]:
    """Return the rows with personal data and secrets replaced; an untouched row is the same object."""
    texts = [texts_in(record) for record in records]
    changed = iter(redact([text for some in texts for text in some], prepared))
    return [
        _with_texts(record, some, [next(changed) for _ in some])
        for record, some in zip(records, texts, strict=True)
    ]


def _with_texts(record: Record, before: list[str], after: list[str]) -> Record:
    if after == before:
        return record
    texts = iter(after)
    if isinstance(record, Document):
        return record.model_copy(update={"text": next(texts), "metadata": _rebuilt(record.metadata, texts)})
    messages = tuple(_turn(turn, texts) for turn in record.messages)
    return record.model_copy(update={"messages": messages, "metadata": _rebuilt(record.metadata, texts)})


def _turn(turn: Message, texts: Iterator[str]) -> Message:
    content = next(texts)
    calls = tuple(_call(call, texts) for call in turn.tool_calls)
    return turn.model_copy(update={"content": content, "tool_calls": calls})


def _call(call: ToolCall, texts: Iterator[str]) -> ToolCall:
    arguments = orjson.dumps(_rebuilt(orjson.loads(call.arguments), texts)).decode()
    return call.model_copy(update={"arguments": arguments})


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    elif _is_text(value):
        yield str(value)


def _rebuilt(value: Any, texts: Iterator[str]) -> Any:
    if isinstance(value, dict):
        return {key: _rebuilt(inner, texts) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rebuilt(inner, texts) for inner in value]
    if not _is_text(value):
        return value
    text = next(texts)
    return value if text == str(value) else text


def _is_text(value: Any) -> bool:
    is_number = isinstance(value, int) and not isinstance(value, bool) and len(str(abs(value))) >= _DIGITS
    return isinstance(value, str) or is_number
