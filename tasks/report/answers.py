"""Test questions side by side: what tuning and quantization did to each answer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from core.config import Frozen

NO_TOPIC = "(no topic)"
FILTERS = {
    "broken": "Broken by tuning",
    "quantization-broke": "Broken by quantization",
    "fixed": "Fixed by tuning",
    "quantization-fixed": "Fixed by quantization",
    "all-wrong": "All wrong",
    "all-right": "All right",
}
"""Filters of the answer table, worst news first; the table is sorted in this order."""


class AnswerRow(Frozen):
    """One test question with what each model answered; None where a model was not asked."""

    id: str
    question: str
    reference: str
    topic: str | None = None
    baseline: str | None = None
    tuned: str | None = None
    shipped: str | None = None
    """Answer of the quantized file that the bundle ships."""
    baseline_scores: dict[str, float] = {}
    tuned_scores: dict[str, float] = {}
    shipped_scores: dict[str, float] = {}


class Flips(NamedTuple):
    """Answers sorted by what tuning, and then quantization, did to them."""

    fixed: tuple[AnswerRow, ...]
    """Baseline wrong, tuned right."""
    broken: tuple[AnswerRow, ...]
    """Baseline right, tuned wrong."""
    same_right: tuple[AnswerRow, ...]
    same_wrong: tuple[AnswerRow, ...]
    quantization_broke: tuple[AnswerRow, ...]
    """Tuned right, shipped wrong."""
    quantization_fixed: tuple[AnswerRow, ...]
    """Tuned wrong, shipped right."""


class FlipRow(NamedTuple):
    """A row of the answer table: the filters it belongs to, and its kind in words."""

    row: AnswerRow
    kinds: tuple[str, ...]
    label: str


class TopicRow(NamedTuple):
    """Share of right answers within one topic; None where a model was not asked."""

    topic: str
    n: int
    baseline: float | None
    tuned: float | None
    shipped: float | None


def is_right(scores: Mapping[str, float]) -> bool | None:
    """Tell whether an answer counts as right.

    That is exact match where it was graded, and full marks in every other metric otherwise.

    Returns:
        None when the answer was not graded.
    """
    if not scores:
        return None
    return scores.get("exact_match", min(scores.values())) >= 1


def flips(answers: Iterable[AnswerRow]) -> Flips:
    """Sort answers by what changed; averages hide exactly this.

    A row takes part in a comparison only if both of its answers were graded.
    """
    rows = [(r, *_verdicts(r)) for r in answers]
    return Flips(
        fixed=tuple(r for r, base, tuned, _ in rows if (base, tuned) == (False, True)),
        broken=tuple(r for r, base, tuned, _ in rows if (base, tuned) == (True, False)),
        same_right=tuple(r for r, base, tuned, _ in rows if (base, tuned) == (True, True)),
        same_wrong=tuple(r for r, base, tuned, _ in rows if (base, tuned) == (False, False)),
        quantization_broke=tuple(r for r, _, tuned, ship in rows if (tuned, ship) == (True, False)),
        quantization_fixed=tuple(r for r, _, tuned, ship in rows if (tuned, ship) == (False, True)),
    )


def flip_rows(answers: Sequence[AnswerRow]) -> tuple[FlipRow, ...]:
    """Give every answer its filters and words, worst news first."""
    order = {kind: place for place, kind in enumerate((*FILTERS, ""))}
    rows = [_flip_row(row) for row in answers]
    return tuple(sorted(rows, key=lambda flip: order[(*flip.kinds, "")[0]]))


def topic_rows(answers: Sequence[AnswerRow]) -> tuple[TopicRow, ...]:
    """Compute the share of right answers by topic, largest topic first; empty without topics."""
    if all(row.topic is None for row in answers):
        return ()
    groups: dict[str, list[AnswerRow]] = {}
    for row in answers:
        groups.setdefault(row.topic or NO_TOPIC, []).append(row)
    rows = [
        TopicRow(topic, len(group), *(_share(column) for column in zip(*map(_verdicts, group), strict=True)))
        for topic, group in groups.items()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.n, row.topic)))


def _verdicts(row: AnswerRow) -> tuple[bool | None, bool | None, bool | None]:
    return is_right(row.baseline_scores), is_right(row.tuned_scores), is_right(row.shipped_scores)


def _flip_row(row: AnswerRow) -> FlipRow:
    base, tuned, shipped = verdicts = _verdicts(row)
    given = [verdict for verdict in verdicts if verdict is not None]
    belongs = {
        "broken": (base, tuned) == (True, False),
        "quantization-broke": (tuned, shipped) == (True, False),
        "fixed": (base, tuned) == (False, True),
        "quantization-fixed": (tuned, shipped) == (False, True),
        "all-wrong": bool(given) and not any(given),
        "all-right": bool(given) and all(given),
    }
    kinds = tuple(kind for kind in FILTERS if belongs[kind])
    label = ", ".join(FILTERS[kind].lower() for kind in kinds) or ("mixed" if given else "not graded")
    return FlipRow(row, kinds, label[0].upper() + label[1:])


def _share(verdicts: Iterable[bool | None]) -> float | None:
    known = [verdict for verdict in verdicts if verdict is not None]
    return sum(known) / len(known) if known else None
