"""The one internal form of a training row: a conversation."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from core.artifacts import read_jsonl
from core.config import Frozen

Role = Literal["system", "user", "assistant"]
ID_PATTERN = re.compile(r"[a-zA-Z0-9_-]+")


class Message(Frozen):
    """One turn."""

    role: Role
    content: str


class Conversation(Frozen):
    """At most one system turn, then user and assistant in turns; the last word is the assistant's."""

    id: str = Field(pattern=r"^[a-zA-Z0-9_-]+$")
    messages: tuple[Message, ...]
    metadata: dict[str, Any] = {}

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        problem = first_problem(self.messages)
        if problem:
            raise ValueError(problem)
        return self


def first_problem(messages: Sequence[Message]) -> str | None:
    """Return why turns make no conversation, as a short stable phrase, or None if they do."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not any(turn.role == "user" for turn in turns):
        return "no user turn"
    if turns[-1].role != "assistant":
        return "no answer"
    if any(turn.role != ("user", "assistant")[place % 2] for place, turn in enumerate(turns)):
        return "roles do not alternate"
    if any(not turn.content.strip() for turn in messages):
        return "empty answer" if not turns[-1].content.strip() else "empty turn"
    return None


def to_row(conversation: Conversation, origin: dict[str, Any]) -> dict[str, Any]:
    """Return a conversation as a row of a dataset file."""
    return {
        "id": conversation.id,
        "conversations": [turn.model_dump() for turn in conversation.messages],
        "metadata": conversation.metadata,
        "origin": origin,
    }


def from_row(row: dict[str, Any]) -> Conversation:
    """Return the conversation of a row of a dataset file."""
    return Conversation(id=row["id"], messages=row["conversations"], metadata=row.get("metadata", {}))


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Yield the conversations of a dataset or split file that this program wrote."""
    for row in read_jsonl(path):
        yield from_row(row)
