"""The row shapes people have, and how each becomes a conversation."""

from collections.abc import Callable
from typing import Any, NamedTuple

from core.data.config import RowFormat
from core.data.records import Message, Role, first_problem

UNKNOWN_SHAPE = "unknown shape"
NOT_TEXT = "content is not text"
UNKNOWN_ROLE = "unknown role"
NO_ANSWER = "no answer"

ACCEPTED = (
    "{instruction, input, output}, {messages: [{role, content}]}, {conversations: [{from, value}]}, "
    "{prompt, completion} or {question, answer}"
)
"""The shapes, for messages to people."""

_PAIRS = (("prompt", "completion"), ("question", "answer"))
_LISTS = ("messages", "conversations")
_FLAT: tuple[tuple[RowFormat, frozenset[str]], ...] = (
    ("alpaca", frozenset({"instruction", "output"})),
    *((("prompt_completion", frozenset(pair))) for pair in _PAIRS),
)
_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


class Rejected(Exception):
    """A row that cannot become a conversation; the message is one of a few stable reasons."""


class Converted(NamedTuple):
    """A row's conversation before it has an id."""

    format: RowFormat
    messages: tuple[Message, ...]
    metadata: dict[str, Any]
    """The row's ``metadata`` object plus its leftover scalar fields."""


def convert(row: dict[str, Any], declared: RowFormat = "auto") -> Converted:
    """Turn a raw row into the turns of a conversation.

    Text is stripped at both ends. A blank system turn counts as none.

    Args:
        row: The raw row.
        declared: Its shape, or ``auto`` to look at its keys.

    Raises:
        Rejected: With a stable reason, if the row is not usable.
    """
    shape = detect(row) if declared == "auto" else declared
    turns, used = _CONVERTERS[shape](row)
    messages = tuple(turn for turn in turns if turn.content or turn.role != "system")
    problem = first_problem(messages)
    if problem:
        raise Rejected(problem)
    return Converted(shape, messages, _metadata(row, used))


def detect(row: dict[str, Any]) -> RowFormat:
    """Return the shape of a row by its keys.

    Raises:
        Rejected: If it has none of the known shapes.
    """
    key = _list_key(row)
    if key is not None:
        first: object = next(iter(row[key]), None)
        return "sharegpt" if isinstance(first, dict) and "from" in first else "messages"
    for shape, keys in _FLAT:
        if keys <= row.keys():
            return shape
    for shape, keys in _FLAT:
        # Half a pair still tells what was meant, and "no answer" helps more than "unknown shape".
        if keys & row.keys():
            return shape
    raise Rejected(UNKNOWN_SHAPE)


def _list_key(row: dict[str, Any]) -> str | None:
    return next((key for key in _LISTS if isinstance(row.get(key), list)), None)


def _alpaca(row: dict[str, Any]) -> tuple[list[Message], set[str]]:
    used = {"instruction", "input", "output"}
    if not {"instruction", "output"} & row.keys():
        raise Rejected(UNKNOWN_SHAPE)
    instruction, given = _text(row.get("instruction")) or "", _text(row.get("input")) or ""
    # Without input the instruction is the question; a system turn alone asks nothing.
    system, question = (instruction, given) if given else ("", instruction)
    return _ask(question, _answer(row.get("output")), system), used


def _pair(row: dict[str, Any]) -> tuple[list[Message], set[str]]:
    known = [pair for pair in _PAIRS if set(pair) & row.keys()]
    if not known:
        raise Rejected(UNKNOWN_SHAPE)
    question, answer = next((pair for pair in known if set(pair) <= row.keys()), known[0])
    return _ask(_text(row.get(question)) or "", _answer(row.get(answer))), {question, answer}


def _ask(question: str, answer: str, system: str = "") -> list[Message]:
    if not question:
        raise Rejected("no user turn")
    return [
        Message(role="system", content=system),
        Message(role="user", content=question),
        Message(role="assistant", content=answer),
    ]


def _messages(row: dict[str, Any]) -> tuple[list[Message], set[str]]:
    return _turns(row, "role", "content")


def _sharegpt(row: dict[str, Any]) -> tuple[list[Message], set[str]]:
    return _turns(row, "from", "value")


def _turns(row: dict[str, Any], speaker: str, said: str) -> tuple[list[Message], set[str]]:
    key = _list_key(row)
    if key is None:
        raise Rejected(UNKNOWN_SHAPE)
    return [_turn(item, speaker, said) for item in row[key]], {key}


def _turn(item: object, speaker: str, said: str) -> Message:
    if not isinstance(item, dict) or speaker not in item or said not in item:
        raise Rejected(UNKNOWN_SHAPE)
    name = item[speaker]
    if not isinstance(name, str) or name not in _ROLES:
        raise Rejected(UNKNOWN_ROLE)
    text = _text(item[said])
    if text is None:
        raise Rejected(NO_ANSWER if _ROLES[name] == "assistant" else NOT_TEXT)
    return Message(role=_ROLES[name], content=text)


def _answer(value: object) -> str:
    text = _text(value)
    if text is None:
        raise Rejected(NO_ANSWER)
    return text


def _text(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise Rejected(NOT_TEXT)
    return None if value is None else value.strip()


def _metadata(row: dict[str, Any], used: set[str]) -> dict[str, Any]:
    given = row.get("metadata")
    skipped = used | {"id"} | ({"metadata"} if isinstance(given, dict) else set())
    left = {
        key: value
        for key, value in row.items()
        if key not in skipped and isinstance(value, str | int | float | bool) and value != ""
    }
    return left | (given if isinstance(given, dict) else {})


_CONVERTERS: dict[RowFormat, Callable[[dict[str, Any]], tuple[list[Message], set[str]]]] = {
    "alpaca": _alpaca,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt_completion": _pair,
}
