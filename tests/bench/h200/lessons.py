"""Token rows that an adapter on a random frozen base can learn something from.

A few hundred tokens follow each other as a Markov chain of order two, and the second half of a row repeats spans of
the first. A model that learns which tokens there are falls from ln(vocabulary) below ln(STATES), one that learns which
follow which to about ln(CHOICES), and one that looks two tokens back to ``entropy()``; copying goes below that.
"""

import math
import random
from typing import NamedTuple

from core.data.chat import IGNORE_INDEX, Encoded

STATES = 256
"""Tokens that occur."""
FREQUENT = 8
"""How flat the law of Zipf is by which states follow others: 1 / (rank + FREQUENT)."""
CHOICES = 4
"""Tokens that may follow one."""
ODDS = (0.7, 0.2, 0.07, 0.03)
"""How likely each is; the token before the last turns the list."""
SPANS = (6, 20)
"""Tokens of a copied span, least and most."""
COPIED = 0.3
"""Share of the tokens behind the first half that begin a copied span, roughly."""


class Lessons(NamedTuple):
    """What is to be learned."""

    tokens: tuple[int, ...]
    """Ids of the states."""
    following: tuple[tuple[int, ...], ...]
    """States that may follow each state."""


def entropy() -> float:
    """Return the nats of a token whose two predecessors are known."""
    return -sum(p * math.log(p) for p in ODDS)


def make_lessons(vocabulary: int, seed: int = 0) -> Lessons:
    """Draw the chain; it is a function of vocabulary and seed."""
    draw = random.Random(f"chain {seed}")
    tokens = draw.sample(range(3, min(vocabulary, 50_000)), min(STATES, vocabulary // 16))
    weights = [1 / (rank + FREQUENT) for rank in range(len(tokens))]
    return Lessons(tuple(tokens), tuple(some(weights, draw) for _ in tokens))


def some(weights: list[float], draw: random.Random) -> tuple[int, ...]:
    """Draw different states, the first ones more often."""
    found: dict[int, None] = {}
    while len(found) < CHOICES:
        found |= dict.fromkeys(draw.choices(range(len(weights)), weights))
    return tuple(found)


def rows(lessons: Lessons, count: int, shortest: int, longest: int, seed: int = 0) -> list[Encoded]:
    """Draw rows of various lengths whose second half carries loss."""
    draw = random.Random(f"rows {seed}")
    found = []
    for _ in range(count):
        length = draw.randint(shortest, longest)
        ids = [lessons.tokens[state] for state in walk(lessons, length, draw)]
        found.append(Encoded(ids, [IGNORE_INDEX] * (length // 2) + ids[length // 2 :]))
    return found


def walk(lessons: Lessons, length: int, draw: random.Random) -> list[int]:
    """Draw the states of one row."""
    states = list(draw.choices(range(len(lessons.tokens)), k=2))
    while len(states) < length:
        if len(states) > length // 2 and draw.random() < COPIED / SPANS[0]:
            states += copied(states, length // 2, draw)
        else:
            states.append(next_state(lessons, states, draw))
    return states[:length]


def next_state(lessons: Lessons, states: list[int], draw: random.Random) -> int:
    """Draw what follows the last two states."""
    (rank,) = draw.choices(range(CHOICES), ODDS)
    return lessons.following[states[-1]][(rank + states[-2]) % CHOICES]


def copied(states: list[int], half: int, draw: random.Random) -> list[int]:
    """Return a span of the first half."""
    size = min(draw.randint(*SPANS), half)
    start = draw.randint(0, half - size)
    return states[start : start + size]
