"""The internal forms of a training row: a conversation, or a plain text."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from core.artifacts import read_jsonl
from core.config import Frozen

Role = Literal["system", "user", "assistant", "tool"]
ID_PATTERN = re.compile(r"[a-zA-Z0-9_-]+")


class ToolCall(Frozen):
    """A function an assistant turn asks for."""

    name: str
    arguments: str
    """JSON text of the arguments, an object."""
    id: str | None = None

    @field_validator("arguments")
    @classmethod
    def _is_object(cls, text: str) -> str:
        try:
            value = json.loads(text)
        except RecursionError as error:
            raise ValueError("the arguments of a call are nested too deeply") from error
        if not isinstance(value, dict):
            raise ValueError("the arguments of a call are a JSON object")
        return text


class Message(Frozen):
    """One turn."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """What an assistant turn calls; its content may then be empty."""
    name: str | None = None
    """Of a tool turn: the function that answers."""
    tool_call_id: str | None = None
    """Of a tool turn: the call it answers."""


class Conversation(Frozen):
    """At most one system turn, then user and assistant in turns; the last word is the assistant's.

    After an assistant turn that calls tools come their answers, then the assistant again.
    """

    id: str = Field(pattern=r"^[a-zA-Z0-9_-]+$")
    messages: tuple[Message, ...]
    metadata: dict[str, Any] = {}

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        problem = first_problem(self.messages)
        if problem:
            raise ValueError(problem)
        return self


class Document(Frozen):
    """A plain text to continue pretraining on; it has no question and no answer."""

    id: str = Field(pattern=r"^[a-zA-Z0-9_-]+$")
    text: str = Field(min_length=1)
    metadata: dict[str, Any] = {}


Record = Conversation | Document


def first_problem(messages: Sequence[Message]) -> str | None:
    """Return why turns make no conversation, as a short stable phrase, or None if they do."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    roles = [turn.role for turn in turns]
    if "user" not in roles:
        return "no user turn"
    if roles[-1] != "assistant":
        return "no answer"
    before: Message | None = None
    for turn in turns:
        problem = _misplaced(turn, before)
        if problem:
            return problem
        before = turn
    if any(not turn.content.strip() and not _may_be_empty(turn) for turn in messages):
        return "empty turn" if turns[-1].content.strip() or turns[-1].tool_calls else "empty answer"
    return None


def _misplaced(turn: Message, before: Message | None) -> str | None:
    role, last = turn.role, before.role if before else None
    waits = bool(before and before.tool_calls)
    if turn.tool_calls and role != "assistant":
        return "tool call outside an assistant turn"
    if role == "tool":
        return None if waits or last == "tool" else "tool answer without a call"
    if waits:
        return "tool call without an answer"
    if role == "user" and last in (None, "assistant"):
        return None
    if role == "assistant" and last in ("user", "tool"):
        return None
    return "roles do not alternate"


def _may_be_empty(turn: Message) -> bool:
    # A tool may well have nothing to say.
    return turn.role == "tool" or bool(turn.tool_calls)


def to_row(record: Record, origin: dict[str, Any]) -> dict[str, Any]:
    """Return a record as a row of a dataset file; what is not set is left out of a turn."""
    if isinstance(record, Document):
        body: dict[str, Any] = {"text": record.text}
    else:
        body = {"conversations": [turn_row(turn) for turn in record.messages]}
    return {"id": record.id, **body, "metadata": record.metadata, "origin": origin}


def turn_row(turn: Message) -> dict[str, Any]:
    """Return a turn as it stands in a dataset file."""
    row: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        row["tool_calls"] = [call.model_dump(exclude_none=True) for call in turn.tool_calls]
    if turn.name is not None:
        row["name"] = turn.name
    if turn.tool_call_id is not None:
        row["tool_call_id"] = turn.tool_call_id
    return row


def from_row(row: dict[str, Any]) -> Record:
    """Return the conversation or document of a row of a dataset file."""
    metadata = row.get("metadata", {})
    if "conversations" in row:
        return Conversation(id=row["id"], messages=row["conversations"], metadata=metadata)
    return Document(id=row["id"], text=row["text"], metadata=metadata)


def read_records(path: Path) -> Iterator[Record]:
    """Yield all records of a dataset or split file that this program wrote."""
    for row in read_jsonl(path):
        yield from_row(row)


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Yield the conversations of a dataset or split file, passing plain texts over."""
    for record in read_records(path):
        if isinstance(record, Conversation):
            yield record
