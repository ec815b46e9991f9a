"""Lists of turns, in every spelling of who speaks and what is said."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from core.data.formats.calls import read_calls, read_result, uncovered
from core.data.formats.reasons import (
    AUDIO,
    IMAGE,
    NO_ANSWER,
    NOT_TEXT,
    UNKNOWN_ROLE,
    UNKNOWN_SHAPE,
    VIDEO,
    Rejected,
)
from core.data.records import Message, Role

LIST_FIELDS = ("messages", "conversations", "conversation", "dialog", "dialogue")
"""Fields that hold lists of turns."""

Speaker = Role | Literal["call"]
"""A role, or ``call``: an assistant turn whose whole text is a tool call."""

ROLES: Mapping[str, Speaker] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function_call": "call",
    "tool_call": "call",
    "tool_calls": "call",
}
_MEDIA = (("image", IMAGE), ("audio", AUDIO), ("video", VIDEO))


class Spelling(NamedTuple):
    """The names of a turn's fields, the likeliest first."""

    speaker: tuple[str, ...]
    said: tuple[str, ...]
    roles: Mapping[str, Speaker] = ROLES


OPENAI = Spelling(("role",), ("content",))
SHAREGPT = Spelling(("from", "role"), ("value", "content"))


def turn_list(row: Mapping[str, Any], field: str) -> list[Any] | None:
    """Return the list of turns in a field, also where a table holds it as JSON text."""
    value = row.get(field)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def read_turns(items: Sequence[object], spelling: Spelling) -> list[Message]:
    """Return the messages of a list of turns.

    Calls that stand in a turn of their own join the assistant turn before them.

    Raises:
        Rejected: If a turn has no known speaker or no text.
    """
    turns: list[Message] = []
    for item in items:
        if not isinstance(item, dict):
            raise Rejected(UNKNOWN_SHAPE)
        speaker = _speaker(item, spelling)
        turn = _turn(item, speaker, spelling.said)
        if speaker == "call" and turns and turns[-1].role == "assistant":
            last = turns.pop()
            turn = last.model_copy(update={"tool_calls": last.tool_calls + turn.tool_calls})
        turns.append(turn)
    return uncovered(turns)


def _speaker(item: dict[str, Any], spelling: Spelling) -> Speaker:
    for field in spelling.speaker:
        name = item.get(field)
        if name is not None:
            break
    else:
        raise Rejected(UNKNOWN_SHAPE if all(f not in item for f in spelling.speaker) else UNKNOWN_ROLE)
    if not isinstance(name, str):
        raise Rejected(UNKNOWN_ROLE)
    role = spelling.roles.get(name) or spelling.roles.get(name.strip().lower())
    if role is None:
        raise Rejected(UNKNOWN_ROLE)
    return role


def _turn(item: dict[str, Any], speaker: Speaker, said: tuple[str, ...]) -> Message:
    value = next((item[field] for field in said if item.get(field) is not None), None)
    if speaker == "call":
        return Message(role="assistant", content="", tool_calls=read_calls(value))
    if speaker == "tool":
        return _tool_turn(item, value)
    calls = item.get("tool_calls") or item.get("function_call")
    if calls:
        content = "" if value is None else _content(value)
        return Message(role=speaker, content=content, tool_calls=read_calls(calls))
    if value is None:
        raise Rejected(_missing(item, speaker, said))
    return Message(role=speaker, content=value.strip() if isinstance(value, str) else _content(value))


def _missing(item: dict[str, Any], speaker: Speaker, said: tuple[str, ...]) -> str:
    if all(field not in item for field in said):
        return UNKNOWN_SHAPE
    return NO_ANSWER if speaker == "assistant" else NOT_TEXT


def _tool_turn(item: dict[str, Any], value: object) -> Message:
    name, call = item.get("name"), item.get("tool_call_id")
    return Message(
        role="tool",
        content=_content(value) if _is_parts(value) else read_result(value),
        name=name if isinstance(name, str) and name else None,
        tool_call_id=call if isinstance(call, str) and call else None,
    )


def _is_parts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_part(part) for part in value)


def _is_part(part: object) -> bool:
    return isinstance(part, dict) and isinstance(part.get("type"), str)


def _content(value: object) -> str:
    """Return the text of a content: a string, or a list of {type: text, text}."""
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, list):
        raise Rejected(NOT_TEXT)
    return "".join(_part(part) for part in value).strip()


def _part(part: object) -> str:
    if not isinstance(part, dict):
        raise Rejected(NOT_TEXT)
    kind, text = part.get("type"), part.get("text")
    named = kind if isinstance(kind, str) else " ".join(key for key, value in part.items() if value)
    for medium, reason in _MEDIA:
        if medium in named:
            raise Rejected(reason)
    if not isinstance(text, str):
        raise Rejected(NOT_TEXT)
    return text
