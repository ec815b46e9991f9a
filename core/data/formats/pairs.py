"""Readers of rows that hold one question and one answer in fields of their own."""

from typing import Any, NamedTuple

from core.data.config import RowFormat
from core.data.formats.calls import read_tools
from core.data.formats.found import Found, exchange, own_system
from core.data.formats.reasons import (
    NO_QUESTION,
    NOT_TEXT,
    PREFERENCE,
    UNKNOWN_SHAPE,
    Rejected,
    answer,
    stripped,
)
from core.data.formats.turns import SHAREGPT, read_turns
from core.data.records import Message


class Pair(NamedTuple):
    """Names of the field that asks and the field that answers."""

    format: RowFormat
    asks: str
    answers: str


PAIRS = (
    Pair("alpaca", "instruction", "output"),
    Pair("prompt_completion", "prompt", "completion"),
    Pair("prompt_completion", "prompt", "response"),
    Pair("question_answer", "question", "answer"),
    Pair("question_answer", "query", "answer"),
    Pair("question_answer", "query", "response"),
    Pair("question_answer", "question", "response"),
    Pair("alpaca", "input", "output"),
    Pair("alpaca", "instruction", "response"),
)
"""Full pairs, the more telling first."""


def full_pair(row: dict[str, Any], shape: RowFormat | None = None) -> Pair | None:
    """Return the first pair of which a row has both fields; what a table left blank counts as missing."""
    for pair in PAIRS:
        if row.get(pair.asks) is None or row.get(pair.answers) is None:
            continue
        if shape in (None, pair.format):
            return pair
    return None


def begun_pair(row: dict[str, Any]) -> Pair | None:
    """Return the first pair of which a row has one field filled."""
    filled = {key: value for key, value in row.items() if value is not None}
    return half_pair(filled)


def half_pair(row: dict[str, Any], shape: RowFormat | None = None) -> Pair | None:
    """Return the first pair of which a row names one field.

    It still tells what was meant, and "no answer" helps more than "unknown shape".
    """
    for pair in PAIRS:
        if (pair.asks in row or pair.answers in row) and shape in (None, pair.format):
            return pair
    return None


def read_alpaca(row: dict[str, Any]) -> Found:
    """Read {instruction, input, output}: with input the instruction is the system turn.

    Without input the instruction is the question: a system turn alone asks nothing.
    """
    pair = full_pair(row, "alpaca") or half_pair(row, "alpaca")
    if pair is None:
        raise Rejected(_unknown(row))
    extra = "context" if pair.answers == "response" else "input"
    instruction, given = stripped(row.get("instruction")) or "", stripped(row.get(extra)) or ""
    system, system_field = own_system(row)
    if given and instruction:
        system = f"{system}\n\n{instruction}" if system else instruction
    said = answer(row.get(pair.answers))
    turns = _asked(given or instruction, said, system)
    history, history_field = _history(row)
    if history:
        place = len(turns) - 2
        turns = [*turns[:place], *history, *turns[place:]]
    fields = (field for field in ("instruction", extra, pair.answers) if field in row)
    return Found(turns, (*system_field, *history_field, *fields))


def _history(row: dict[str, Any]) -> tuple[list[Message], tuple[str, ...]]:
    """Return earlier turns, which some Alpaca files hold as [[question, answer], ...]."""
    history = row.get("history")
    if not isinstance(history, list) or not history:
        return [], ()
    turns: list[Message] = []
    for item in history:
        if not isinstance(item, list) or len(item) != 2:
            raise Rejected(NOT_TEXT)
        turns += _asked(stripped(item[0]) or "", answer(item[1]))
    return turns, ("history",)


def read_prompt_completion(row: dict[str, Any]) -> Found:
    """Read {prompt, completion} or {prompt, response}: texts, or lists of turns as TRL has them."""
    return _read(row, "prompt_completion")


def read_question_answer(row: dict[str, Any]) -> Found:
    """Read {question, answer}, {query, response} and the like."""
    return _read(row, "question_answer")


def _read(row: dict[str, Any], shape: RowFormat) -> Found:
    pair = full_pair(row, shape) or half_pair(row, shape)
    if pair is None:
        raise Rejected(_unknown(row))
    system, system_field = own_system(row)
    fields = (*system_field, *(field for field in (pair.asks, pair.answers) if field in row))
    prompt, completion = row.get(pair.asks), row.get(pair.answers)
    if isinstance(prompt, list) or isinstance(completion, list):
        turns = [*_part(prompt, "user"), *_part(completion, "assistant")]
        if system and not (turns and turns[0].role == "system"):
            turns = [Message(role="system", content=system), *turns]
        tools, tools_field = read_tools(row)
        return Found(turns, (*fields, *tools_field), extra=tools)
    return Found(_asked(stripped(prompt) or "", answer(completion), system), fields)


def _part(value: object, role: str) -> list[Message]:
    items = [{"role": role, "content": value}] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Rejected(NOT_TEXT)
    return read_turns(items, SHAREGPT)


def _asked(question: str, said: str, system: str = "") -> list[Message]:
    if not question:
        raise Rejected(NO_QUESTION)
    return exchange(question, said, system)


def _unknown(row: dict[str, Any]) -> str:
    return PREFERENCE if is_preference(row) else UNKNOWN_SHAPE


def is_preference(row: dict[str, Any]) -> bool:
    """Tell whether a row compares answers, good ones and bad ones, instead of giving one to learn."""
    if "chosen" in row and "rejected" in row:
        return True
    return isinstance(row.get("label"), bool) and "prompt" in row and "completion" in row
