"""Count the values of fields that divide rows into a few kinds."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, Self

from core.data.reports import LabelBalance

ANSWER: Final = "answer"
_FEW = 30
"""A field with more values is no label, unless the settings name it; as many values are shown."""
_MOST = 1_000
_MOST_NAMED = 100_000
_MOST_FIELDS = 256
_LONGEST = 80
"""A longer value is a text, not a label."""
_SCALAR = (str, int, float)

Values = dict[str, Counter[str]]


@dataclass(frozen=True)
class Labels:
    """Values of the fields of some rows.

    What is given up (a field with too many values, or with a text or a list in it) depends on the
    set of rows alone, so parts may be merged in any order.
    """

    rows: int = 0
    named: frozenset[str] = frozenset()
    """Fields the settings name; they are never given up for having many values."""
    values: Values = field(default_factory=dict)
    given_up: frozenset[str] = frozenset()
    too_many_fields: bool = False
    answers: Counter[str] | None = None
    """Answers by text; None if they were not given or are not labels."""
    has_answers: bool = False

    @classmethod
    def of(
        cls,
        metadata: Sequence[Mapping[str, Any]],
        named: Iterable[str] = (),
        answers: Sequence[str] | None = None,
    ) -> Self:
        """Count the fields of rows.

        Args:
            metadata: Fields of each row.
            named: Fields to count whatever their values.
            answers: Answer of each row, counted as one more field.
        """
        fields = set(chain.from_iterable(metadata))
        too_many = len(fields) > _MOST_FIELDS
        looked_at = fields & set(named) if too_many else fields
        counts = {name: _counted([row.get(name) for row in metadata]) for name in looked_at}
        replies = _counted(list(answers)) if answers is not None else None
        raw = cls(
            len(metadata),
            frozenset(named),
            {name: values for name, values in counts.items() if values is not None},
            frozenset(name for name, values in counts.items() if values is None),
            too_many,
            replies,
            answers is not None,
        )
        return raw._bounded()

    def merged(self, other: Self) -> Self:
        """Return the counts of both."""
        named = self.named | other.named
        given_up = self.given_up | other.given_up
        fields = (self.values.keys() | other.values.keys()) - given_up
        none: Counter[str] = Counter()
        counts = {name: self.values.get(name, none) + other.values.get(name, none) for name in fields}
        both = type(self)(
            self.rows + other.rows,
            named,
            counts,
            given_up,
            self.too_many_fields or other.too_many_fields,
            self._merged_answers(other),
            self.has_answers or other.has_answers,
        )
        return both._bounded()

    def balances(self) -> tuple[LabelBalance, ...]:
        """Return the fields that are labels, by name."""
        found = [
            _balance(name, self.values[name], self.rows)
            for name in sorted(self.values)
            if self._is_label(name)
        ]
        if self.answers and _few(self.answers):
            name = f"{ANSWER} (text)" if ANSWER in self.values else ANSWER
            found.append(_balance(name, self.answers, self.rows))
        return tuple(found)

    def _is_label(self, name: str) -> bool:
        if self.named:
            return name in self.named
        return _few(self.values[name])

    def _merged_answers(self, other: Self) -> Counter[str] | None:
        if not self.has_answers or not other.has_answers:
            return self.answers if self.has_answers else other.answers
        if self.answers is None or other.answers is None:
            return None
        return self.answers + other.answers

    def _bounded(self) -> Self:
        """Return the same without what has grown too large to be a label."""
        wide = {
            name
            for name, values in self.values.items()
            if len(values) > (_MOST_NAMED if name in self.named else _MOST)
        }
        fields = len(self.values.keys() | self.given_up)
        too_many = self.too_many_fields or fields > _MOST_FIELDS
        kept = {
            name: values
            for name, values in self.values.items()
            if name not in wide and (not too_many or name in self.named)
        }
        answers = self.answers if self.answers is None or len(self.answers) <= _MOST else None
        given_up = (self.given_up | wide) if not too_many else (self.given_up | wide) & self.named
        return type(self)(self.rows, self.named, kept, given_up, too_many, answers, self.has_answers)


def evenness(counts: Iterable[int]) -> float:
    """Return the Shannon entropy of counts over its largest possible value (Pielou's J).

    Returns:
        0 for one value, 1 for values that are all as frequent.
    """
    sizes = [count for count in counts if count]
    if len(sizes) < 2:
        return 0.0
    total = sum(sizes)
    entropy = -math.fsum(size / total * math.log(size / total) for size in sizes)
    return min(1.0, max(0.0, entropy / math.log(len(sizes))))


def _counted(values: list[Any]) -> Counter[str] | None:
    """Return values by their text, or None if one is no scalar or too long for a label."""
    try:
        # With their types, for True and 1 and 1.0 are equal.
        kinds = Counter(zip(map(type, values), values, strict=True))
    except TypeError:
        return None
    counts: Counter[str] = Counter()
    for (kind, value), count in kinds.items():
        if value is None:
            continue
        text = str(value).strip()
        if not issubclass(kind, _SCALAR) or len(text) > _LONGEST:
            return None
        counts[text] += count
    return counts


def _few(values: Counter[str]) -> bool:
    return 0 < len(values) <= _FEW and values.total() >= 2 * len(values)


def _balance(name: str, values: Counter[str], rows: int) -> LabelBalance:
    ranked = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    return LabelBalance(
        field=name,
        counts=dict(ranked[:_FEW]),
        others=sum(count for _, count in ranked[_FEW:]),
        missing=rows - values.total(),
        evenness=evenness(values.values()),
    )
