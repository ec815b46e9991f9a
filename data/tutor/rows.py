"""The good rows: every fact in a few phrasings, in the row format of its file."""

import random
from collections.abc import Sequence
from typing import Any

from data.tutor import sums, units
from data.tutor.facts import FACTS
from data.tutor.relation import Fact, Question, backward, forward
from data.tutor.sums import NOTES, Sum

Row = dict[str, Any]

ADDITIONS, NOTE_ADDITIONS, THREES = 470, 70, 40
"""How many pairs of numbers, pairs that make a cedi note, and triples."""
SYSTEM = (
    "You are a tutor for a school in Ghana. Answer with the result only.",
    "You help pupils with their homework. Keep every answer short.",
    "You are a patient teacher. Give the answer and nothing else.",
)
TALKS, SYSTEMS = 0.12, 0.12
"""Share of facts with a conversation of two turns, and of facts with a system turn."""


def metadata(fact: str, topic: str, language: str, difficulty: str) -> dict[str, str]:
    """Return the labels every good row carries; fact is the group that must stay together."""
    return {"fact": fact, "topic": topic, "language": language, "difficulty": difficulty}


def arithmetic_rows(rng: random.Random) -> list[Row]:
    """Return calculations as instruction, input and output."""
    rows = []
    for fact, numbers in _calculations(rng):
        for question in _distinct(fact, numbers, rng):
            level = "middle" if fact.startswith("add:") and sum(numbers) > 100 else "elementary"
            rows.append(_alpaca(question, metadata(fact, "arithmetic", "en", level), rng))
    rng.shuffle(rows)
    return [{"id": f"arithmetic-{number:04d}", **row} for number, row in enumerate(rows, start=1)]


def _calculations(rng: random.Random) -> list[tuple[str, tuple[int, ...]]]:
    pairs = [(x, y) for x in range(2, 100) for y in range(x, 100)]
    notes = [pair for pair in pairs if sum(pair) in NOTES]
    chosen = set(rng.sample(notes, NOTE_ADDITIONS))
    chosen |= set(rng.sample([pair for pair in pairs if pair not in chosen], ADDITIONS))
    triples = {tuple(sorted(rng.sample(range(2, 31), 3))) for _ in range(THREES)}
    products = [(x, y) for x in range(2, 13) for y in range(x, 13)]
    added = [("add:" + ":".join(map(str, group)), group) for group in sorted(chosen) + sorted(triples)]
    return added + [(f"mul:{x}:{y}", (x, y)) for x, y in products]


def _distinct(fact: str, numbers: tuple[int, ...], rng: random.Random) -> list[Sum]:
    """Return three to five questions about one calculation."""
    wanted, found = rng.choice((3, 4, 4, 5)), dict[str, Sum]()
    while len(found) < wanted:
        question = _asked(fact, numbers, rng)
        found.setdefault(f"{question.context} {question.ask}", question)
    return list(found.values())


def _asked(fact: str, numbers: tuple[int, ...], rng: random.Random) -> Sum:
    if fact.startswith("mul:"):
        return sums.multiplied(numbers, rng)
    return sums.added(numbers, rng) if len(numbers) == 2 else sums.added_three(numbers, rng)


def _alpaca(question: Sum, labels: dict[str, str], rng: random.Random) -> Row:
    instruction, given = f"{question.context} {question.ask}".strip(), ""
    if "\n" in question.context or (question.context and rng.random() < 0.2):
        instruction, given = question.ask, question.context
    return {"instruction": instruction, "input": given, "output": question.answer, "metadata": labels}


def unit_rows(rng: random.Random) -> list[Row]:
    """Return conversions as flat rows for a table."""
    rows = []
    for unit, count in units.values():
        small, big = units.to_small(unit, count), units.to_big(unit, count)
        chosen = rng.sample(small, rng.choice((1, 2, 2))) + rng.sample(big, rng.choice((1, 1, 2)))
        level = "elementary" if unit.factor < 1000 else "middle"
        labels = metadata(f"units:{unit.name}:{count}", "units", "en", level)
        for question in chosen:
            rows.append({"instruction": question.text, "input": "", "output": question.answer, **labels})
    rng.shuffle(rows)
    return rows


def conversation_rows(topics: Sequence[str], rng: random.Random) -> list[Row]:
    """Return the facts of some topics as conversations with role and content."""
    rows = [row for fact in FACTS if fact.relation.topic in topics for row in _conversations(fact, rng)]
    rng.shuffle(rows)
    return rows


def sharegpt_rows(topics: Sequence[str], rng: random.Random) -> list[Row]:
    """Return the facts of some topics as conversations with from and value."""
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [
        {
            "conversations": [
                {"from": names[t["role"]], "value": t["content"]} for t in row["conversations"]
            ],
            "metadata": row["metadata"],
        }
        for row in conversation_rows(topics, rng)
    ]


def _conversations(fact: Fact, rng: random.Random) -> list[Row]:
    """Return two to five single questions, for some facts also one talk of two turns."""
    there, back = forward(fact), backward(fact)
    chosen = rng.sample(there, 2 if back else 3) + rng.sample(back, rng.choice((1, 2)) if back else 0)
    talks = [[question] for question in chosen]
    if back and rng.random() < TALKS:
        talks.append([rng.choice(there[:3]), rng.choice(back[:2])])
    systems = [rng.random() < SYSTEMS / 3 for _ in talks]
    return [
        _talk(fact, talk, rng.choice(SYSTEM) if system else "")
        for talk, system in zip(talks, systems, strict=True)
    ]


def _talk(fact: Fact, questions: Sequence[Question], system: str) -> Row:
    turns = [{"role": "system", "content": system}] if system else []
    for question in questions:
        turns.append({"role": "user", "content": question.text})
        turns.append({"role": "assistant", "content": question.answer})
    labels = metadata(fact.key, fact.relation.topic, questions[-1].language, fact.relation.level)
    return {"conversations": turns, "metadata": labels}
