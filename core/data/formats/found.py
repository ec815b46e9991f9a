"""What a reader of one shape finds in a row."""

from typing import Any, NamedTuple

from core.data.records import Message


class Found(NamedTuple):
    """Turns or a text, and the fields they come from."""

    messages: list[Message]
    used: tuple[str, ...]
    """Fields of the row that were read, in reading order."""
    text: str | None = None
    """A plain text, instead of turns."""
    extra: dict[str, Any] = {}
    """Metadata that is no plain field of the row."""


def exchange(question: str, said: str, system: str = "") -> list[Message]:
    """Return one question and its answer as turns."""
    turns = [Message(role="user", content=question), Message(role="assistant", content=said)]
    return [Message(role="system", content=system), *turns] if system else turns


def own_system(row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the system text that stands in a field of its own, and the name of that field."""
    for field in ("system", "system_prompt"):
        value = row.get(field)
        if isinstance(value, str) and value.strip():
            return value.strip(), (field,)
    return "", ()
