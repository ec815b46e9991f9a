"""Documents that state facts and conversions, and never ask."""

import random
from collections.abc import Sequence

from data.tutor import units
from data.tutor.facts import FACTS, RELATIONS
from data.tutor.relation import Fact, Relation, backward, facts_of, forward, statements
from data.tutor.words import PEOPLE
from data.tutor_base.lessons import LESSON_STATEMENTS

_TOLD: tuple[tuple[str, ...], ...] = tuple(tuple(statements(fact)) for fact in FACTS)
_BY_RELATION: tuple[tuple[Relation, tuple[Fact, ...]], ...] = tuple((r, facts_of(r)) for r in RELATIONS)
_UNITS = tuple(units.values())

_OPENERS = (
    "Remember: {told}",
    "Note: {told}",
    "Today's lesson: {told}",
    "Write this down: {told}",
    "From the book: {told}",
    "On the wall of the classroom: {told}",
    "{name} tells the class: {told}",
    "{name} has learnt this well: {told}",
)
_EMBEDDERS = (
    "We know that {told}",
    "{name} knows that {told}",
    "The teacher says that {told}",
    "It is true that {told}",
    "{name} writes in the exercise book that {told}",
)
_LESSON_SHARE = 0.1
"""Share of other word lessons among the statements: what the chats of the stream ask about."""


def fact_document(rng: random.Random) -> str:
    """Return several facts of mixed topics, as prose, as lines, as cards or as a table."""
    form = rng.random()
    if form < 0.45:
        return " ".join(_sentence(rng) for _ in range(rng.randint(4, 8)))
    if form < 0.65:
        return "\n".join(_plain(rng) for _ in range(rng.randint(4, 9)))
    if form < 0.88:
        return "\n\n".join(_card(rng.choice(FACTS), rng) for _ in range(rng.randint(3, 6)))
    return _table(rng)


def _plain(rng: random.Random) -> str:
    if rng.random() < _LESSON_SHARE:
        return rng.choice(LESSON_STATEMENTS)
    return rng.choice(rng.choice(_TOLD))


def _sentence(rng: random.Random) -> str:
    told, wrap = _plain(rng), rng.random()
    if not told.endswith((".", "?")):
        told += "."
    if wrap < 0.12 and ":" not in told and told.startswith(("The ", "A ", "In ")):
        return rng.choice(_EMBEDDERS).format(told=told[0].lower() + told[1:], name=rng.choice(PEOPLE).name)
    if wrap < 0.24:
        return rng.choice(_OPENERS).format(told=told, name=rng.choice(PEOPLE).name)
    return told


def _card(fact: Fact, rng: random.Random) -> str:
    """Return a card: what is given, what belongs to it, and that on a line of its own."""
    left, right = fact.relation.heads
    if fact.reversible and rng.random() < 0.5:
        return f"{right}: {_cell(fact, 'a')}\n{left}:\n{backward(fact)[0].answer}"
    return f"{left}: {_cell(fact, 's')}\n{right}:\n{forward(fact)[0].answer}"


def _table(rng: random.Random) -> str:
    relation, facts = rng.choice(_BY_RELATION)
    chosen = rng.sample(facts, min(len(facts), rng.randint(4, 10)))
    columns, sides = list(relation.heads), ["s", "a"]
    if rng.random() < 0.5:
        columns, sides = columns[::-1], sides[::-1]
    lines = [",".join(_cell(fact, side) for side in sides) for fact in chosen]
    return "\n".join([",".join(columns), *lines])


def _cell(fact: Fact, side: str) -> str:
    return (
        f"{fact.fields['x']} of {fact.fields[side]}"
        if side == "s" and fact.fields["x"]
        else fact.fields[side]
    )


def unit_document(rng: random.Random) -> str:
    """Return several conversions as lines or as prose."""
    count = rng.randint(5, 10)
    if rng.random() < 0.6:
        return "\n".join(_unit(rng, (*units.TELLS, *units.SLATE)) for _ in range(count))
    told = (_unit(rng, units.TELLS) for _ in range(count))
    return " ".join(line if line.endswith(".") else line + "." for line in told)


def _unit(rng: random.Random, templates: Sequence[str]) -> str:
    unit, count = rng.choice(_UNITS)
    return units.tell(unit, count, rng.choice(templates))
