"""How one piece of knowledge is asked about and how it is told.

A relation is a table of pairs with sentence templates. The question rows use its
questions, the pretraining text its statements: both speak of the same things in
the same words, but no question ever becomes part of the pretraining text.
"""

import re
import unicodedata
from collections import Counter
from typing import NamedTuple

Pair = tuple[str, ...]
"""Subject and answer, and for some relations a third word the templates call x."""


class Relation(NamedTuple):
    """A table of pairs and the templates that speak about them.

    Templates know {s} subject, {a} answer, {x} third word, and {S}, {A}: the same
    with a capital first letter.
    """

    name: str
    topic: str
    level: str
    pairs: tuple[Pair, ...]
    tells: tuple[str, ...]
    """Statements."""
    asks: tuple[str, ...]
    """Questions that the answer answers."""
    answer: str = "{a}"
    back: tuple[str, ...] = ()
    """Questions that the subject answers; used where the answer belongs to one subject only."""
    back_answer: str = "{S}"
    twi_asks: tuple[str, ...] = ()
    twi_back: tuple[str, ...] = ()
    heads: tuple[str, str] = ("", "")
    """Column names of the two sides, for tables."""
    key: str = "{name}:{slug}"


class Fact(NamedTuple):
    """One pair of a relation."""

    key: str
    relation: Relation
    fields: dict[str, str]
    reversible: bool


class Question(NamedTuple):
    """One question with its only right answer."""

    text: str
    answer: str
    language: str = "en"


def capital(text: str) -> str:
    """Return the text with a capital first letter and the rest untouched."""
    return text[:1].upper() + text[1:]


def slug(text: str) -> str:
    """Return a short ASCII name: no article, no accents, hyphens for the rest."""
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    words = re.sub(r"[^a-z0-9]+", "-", re.sub(r"^(the|a|an) ", "", plain))
    return words.strip("-")


def facts_of(relation: Relation) -> tuple[Fact, ...]:
    """Return the facts of a relation, in the order of its pairs."""
    owners = Counter(pair[1] for pair in relation.pairs)
    return tuple(_fact(relation, pair, reversible=owners[pair[1]] == 1) for pair in relation.pairs)


def _fact(relation: Relation, pair: Pair, *, reversible: bool) -> Fact:
    subject, answer, extra = pair if len(pair) == 3 else (*pair, "")
    fields = {"s": subject, "a": answer, "x": extra, "S": capital(subject), "A": capital(answer)}
    key = relation.key.format(name=relation.name, slug=slug(subject), extra=slug(extra))
    return Fact(key, relation, fields, reversible and bool(relation.back))


def forward(fact: Fact) -> list[Question]:
    """Return every question whose answer is the fact's answer."""
    relation, fields = fact.relation, fact.fields
    answer = relation.answer.format(**fields)
    english = [Question(ask.format(**fields), answer) for ask in relation.asks]
    return english + [Question(ask.format(**fields), answer, "tw") for ask in relation.twi_asks]


def backward(fact: Fact) -> list[Question]:
    """Return every question whose answer is the fact's subject; none if several subjects would fit."""
    if not fact.reversible:
        return []
    relation, fields = fact.relation, fact.fields
    answer = relation.back_answer.format(**fields)
    english = [Question(ask.format(**fields), answer) for ask in relation.back]
    return english + [Question(ask.format(**fields), answer, "tw") for ask in relation.twi_back]


def statements(fact: Fact) -> list[str]:
    """Return every statement of the fact."""
    return [tell.format(**fact.fields) for tell in fact.relation.tells]
