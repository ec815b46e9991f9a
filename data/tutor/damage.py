"""Rows spoiled on purpose, so that the data steps have something to find.

Real collections have such rows. These are counted: see the table in the README.
"""

import copy
import random
import unicodedata
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]

DAMAGE: dict[str, dict[str, int]] = {
    "arithmetic.jsonl": {
        "missing answer": 12,
        "empty answer": 10,
        "content is no text": 6,
        "exact duplicate": 14,
        "duplicate in case or spaces": 14,
    },
    "units.csv": {
        "empty answer": 9,
        "exact duplicate": 6,
        "duplicate in case or spaces": 6,
    },
    "facts.json": {
        "no assistant turn": 8,
        "two user turns in a row": 6,
        "content is no text": 5,
        "exact duplicate": 5,
        "duplicate in case or spaces": 5,
        "duplicate in Unicode form": 8,
    },
    "twi.jsonl": {
        "empty answer": 4,
        "no assistant turn": 4,
        "two user turns in a row": 4,
        "exact duplicate": 4,
        "duplicate in case or spaces": 6,
    },
}
"""How many rows of each kind are added to each file."""


def damaged(rows: list[Row], kinds: dict[str, int], rng: random.Random) -> list[Row]:
    """Return the rows with spoiled and repeated copies of some of them put in between.

    The good rows all stay. No row is copied twice, so every kind can be counted. A copy comes
    somewhere after its original: who keeps the first of two equal rows keeps the clean one.
    """
    pool, added = rng.sample(rows, len(rows)), list[tuple[int, Row]]()
    for kind, count in kinds.items():
        usable = [row for row in pool if _fits(kind, row)][:count]
        pool = [row for row in pool if row not in usable]
        added += [(rows.index(row), _SPOIL[kind](copy.deepcopy(row), rng)) for row in usable]
    places = [(rng.uniform(original, len(rows)), row) for original, row in added]
    numbered = [*((float(place), row) for place, row in enumerate(rows)), *places]
    return [row for _, row in sorted(numbered, key=lambda pair: pair[0])]


def _fits(kind: str, row: Row) -> bool:
    text = _question(row)
    if kind == "duplicate in Unicode form":
        return unicodedata.normalize("NFD", text) != text
    return "conversations" not in row or len(row["conversations"]) == 2


def _question(row: Row) -> str:
    return str(row["instruction"] if "instruction" in row else _text(row["conversations"][0]))


def _text(turn: dict[str, str]) -> str:
    return turn["value"] if "value" in turn else turn["content"]


def _without_answer(row: Row, _: random.Random) -> Row:
    del row["output"]
    return row


def _empty_answer(row: Row, _: random.Random) -> Row:
    if "output" in row:
        row["output"] = ""
    else:
        row["conversations"][-1]["value"] = ""
    return row


def _no_text(row: Row, rng: random.Random) -> Row:
    if "output" in row:
        row["output"] = {"value": row["output"]}
    else:
        row["conversations"][-1]["content"] = rng.choice((None, 7))
    return row


def _no_assistant(row: Row, _: random.Random) -> Row:
    row["conversations"] = row["conversations"][:1]
    return row


def _two_users(row: Row, _: random.Random) -> Row:
    row["conversations"].insert(0, dict(row["conversations"][0]))
    return row


def _same(row: Row, _: random.Random) -> Row:
    return row


def _other_case(row: Row, rng: random.Random) -> Row:
    change = rng.choice((str.upper, str.lower, _spaced))
    if change(_question(row)) == _question(row):
        change = _spaced
    return _with_question(row, change)


def _spaced(text: str) -> str:
    return "  " + text.replace(" ", "  ", 2) + " "


def _with_question(row: Row, change: Callable[[str], str]) -> Row:
    if "instruction" in row:
        row["instruction"] = change(row["instruction"])
        return row
    turn = row["conversations"][0]
    name = "value" if "value" in turn else "content"
    turn[name] = change(turn[name])
    return row


def _decomposed(row: Row, _: random.Random) -> Row:
    for turn in row["conversations"]:
        turn["content"] = unicodedata.normalize("NFD", turn["content"])
    return row


_SPOIL: dict[str, Callable[[Row, random.Random], Row]] = {
    "missing answer": _without_answer,
    "empty answer": _empty_answer,
    "content is no text": _no_text,
    "no assistant turn": _no_assistant,
    "two user turns in a row": _two_users,
    "exact duplicate": _same,
    "duplicate in case or spaces": _other_case,
    "duplicate in Unicode form": _decomposed,
}
