"""Readers of rows that hold a text: for pretraining, or a conversation written as one text."""

from typing import Any

from core.data.formats.chat_text import is_chat, read_chat
from core.data.formats.found import Found
from core.data.formats.reasons import NO_TEXT, NOT_TEXT, UNKNOWN_SHAPE, Rejected
from core.data.formats.turns import LIST_FIELDS

TEXT_FIELDS = ("text", "content", "body", "article", "document")
"""Fields of a plain text, the likeliest first."""
_ANNOTATED = ("cleaned_text", "raw_text")


def text_field(row: dict[str, Any]) -> str | None:
    """Return the field of a row's text: one that is filled, else one that is there."""
    if "content" in row and "role" in row:
        # One turn on its own; its conversation lies in other rows.
        return None
    fields = (*TEXT_FIELDS, *_ANNOTATED)
    filled = (field for field in fields if row.get(field) not in (None, ""))
    return next(filled, None) or next((field for field in fields if field in row), None)


def chat_field(row: dict[str, Any]) -> str | None:
    """Return the field of a text that holds a whole conversation."""
    for field in (*TEXT_FIELDS, "chat", *LIST_FIELDS):
        value = row.get(field)
        if isinstance(value, str) and is_chat(value):
            return field
    return None


def read_chat_text(row: dict[str, Any]) -> Found:
    """Read a conversation that is one text with markers."""
    field = chat_field(row) or text_field(row)
    if field is None:
        raise Rejected(UNKNOWN_SHAPE)
    return Found(read_chat(whole(row[field])), (field,))


def read_text(row: dict[str, Any]) -> Found:
    """Read a plain text as it stands; of an annotated passage also what was noted about it."""
    field = text_field(row)
    if field is None:
        raise Rejected(UNKNOWN_SHAPE)
    return Found([], (field,), whole(row[field]), _notes(row) if field in _ANNOTATED else {})


def whole(value: object) -> str:
    """Return a text with all its space.

    Raises:
        Rejected: If it is blank, or no text.
    """
    if value is None:
        raise Rejected(NO_TEXT)
    if not isinstance(value, str):
        raise Rejected(NOT_TEXT)
    if not value.strip():
        raise Rejected(NO_TEXT)
    return value


def _notes(row: dict[str, Any]) -> dict[str, Any]:
    """Return topic, language and the like, and where an annotated passage comes from."""
    annotations, source = row.get("annotations"), row.get("source")
    notes: dict[str, Any] = dict(annotations) if isinstance(annotations, dict) else {}
    if isinstance(source, dict):
        known = {"source": "id", "source_type": "type", "consent_status": "consent_status"}
        notes |= {name: source[key] for name, key in known.items() if isinstance(source.get(key), str)}
    return notes
