"""Tool calls in the spellings people have, and tool turns hidden in text."""

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from pydantic import ValidationError

from core.data.formats.reasons import BAD_CALL, BAD_TOOLS, NOT_TEXT, Rejected
from core.data.records import Message, ToolCall, first_problem

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_RESPONSE = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)
_RESPONSES = re.compile(r"(?:\s*<tool_response>.*?</tool_response>)+\s*", re.DOTALL)


def read_calls(value: object) -> tuple[ToolCall, ...]:
    """Return the calls of OpenAI's ``tool_calls`` or ``function_call``, or of JSON text that holds such.

    Args:
        value: One call or a list: ``{"function": {"name", "arguments"}}`` or ``{"name", "arguments"}``.

    Raises:
        Rejected: If a call has no name, or arguments that are not a JSON object.
    """
    if isinstance(value, str):
        value = _parse(value)
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise Rejected(BAD_CALL)
    return tuple(_call(item) for item in calls)


def _call(item: object) -> ToolCall:
    if not isinstance(item, dict):
        raise Rejected(BAD_CALL)
    inner = item.get("function")
    function = inner if isinstance(inner, dict) else item
    name, given, identity = function.get("name"), function.get("arguments"), item.get("id")
    if not isinstance(name, str) or not name.strip():
        raise Rejected(BAD_CALL)
    arguments = function.get("parameters") if given is None else given
    known = identity if isinstance(identity, str) and identity else None
    try:
        return ToolCall(name=name.strip(), arguments=_arguments(arguments), id=known)
    except ValidationError as error:
        raise Rejected(BAD_CALL) from error


def _arguments(value: object) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return "{}"
    if isinstance(value, str) and isinstance(_parse(value), dict):
        return value.strip()
    if isinstance(value, dict):
        return _dump(value, BAD_CALL)
    raise Rejected(BAD_CALL)


def _refuse(literal: str) -> NoReturn:
    raise ValueError(literal)


def _parse(text: str) -> object:
    try:
        value: object = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Rejected(BAD_CALL) from error
    return value


def _dump(value: object, reason: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise Rejected(reason) from error


def read_result(value: object) -> str:
    """Return what a tool answered, as text; structures become JSON.

    Raises:
        Rejected: If it is a bare number or truth value.
    """
    if value is None:
        return ""
    if isinstance(value, dict | list):
        return _dump(value, NOT_TEXT)
    if not isinstance(value, str):
        raise Rejected(NOT_TEXT)
    text = value.strip()
    wrapped = _RESPONSE.fullmatch(text)
    return wrapped.group(1) if wrapped else text


def read_tools(row: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the functions a row offers, as JSON text under ``tools``, and the field they come from.

    Raises:
        Rejected: If they cannot be written as JSON.
    """
    for field in ("tools", "functions"):
        value = row.get(field)
        if isinstance(value, list | dict) and value:
            return {"tools": _dump(value, BAD_TOOLS)}, (field,)
        if isinstance(value, str) and value.strip():
            return {"tools": value.strip()}, (field,)
    return {}, ()


def uncovered(turns: list[Message]) -> list[Message]:
    """Turn ``<tool_call>`` and ``<tool_response>`` blocks inside texts into tool turns.

    Only if the conversation makes sense that way; a text that merely quotes such a block stays a text.
    """
    if not any(turn.role == "assistant" and "<tool_call>" in turn.content for turn in turns):
        return turns
    opened: list[Message] = []
    for turn in turns:
        opened += _opened(turn, opened)
    return turns if first_problem(opened) else opened


def _opened(turn: Message, before: Sequence[Message]) -> list[Message]:
    if turn.role == "assistant" and not turn.tool_calls and "<tool_call>" in turn.content:
        return [_with_calls(turn)]
    answers = bool(before) and bool(before[-1].tool_calls)
    if turn.role in ("user", "tool") and answers and _RESPONSES.fullmatch(turn.content):
        return [Message(role="tool", content=text) for text in _RESPONSE.findall(turn.content)]
    return [turn]


def _with_calls(turn: Message) -> Message:
    try:
        calls = tuple(call for text in _CALL.findall(turn.content) for call in read_calls(text))
    except Rejected:
        return turn
    content = _CALL.sub("", turn.content).strip()
    return Message(role="assistant", content=content, tool_calls=calls) if calls else turn
