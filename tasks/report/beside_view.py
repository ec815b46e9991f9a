"""What was asked beside the test split, and the examples whose score moved most."""

from collections.abc import Iterator
from typing import NamedTuple

from core.evaluation.reports import LOWER_IS_BETTER, BaselineReport, EvalReport, Suite
from gates.forgetting import suites_of
from tasks.report import numbers
from tasks.report.answers import AnswerRow

MOST_MOVED = 5
"""Examples shown of those whose score rose, and of those whose score fell."""


class Scored(NamedTuple):
    """The evaluations of a run; any part may be missing."""

    base: BaselineReport | None = None
    compared: str | None = None
    """The way of asking the base that the gate compared with."""
    tuned: EvalReport | None = None
    files: tuple[EvalReport, ...] = ()
    answers: tuple[AnswerRow, ...] = ()

    @property
    def shown(self) -> EvalReport | None:
        """The base that stands for all its arms."""
        arms = self.base.arms if self.base else ()
        return next((arm for arm in arms if arm.arm == self.compared), arms[0] if arms else None)


class SuiteLine(NamedTuple):
    """Another set than the test split, before and after tuning."""

    name: str
    metric: str
    n: int
    before: str
    after: str
    change: str
    verdict: str


class Moved(NamedTuple):
    """An example whose score changed."""

    row: AnswerRow
    before: str
    after: str
    change: str


class MovedMost(NamedTuple):
    """Examples with the largest changes, largest first."""

    fallen: tuple[Moved, ...]
    risen: tuple[Moved, ...]


def suite_lines(scored: Scored) -> Iterator[SuiteLine]:
    """Yield every set that base or tuned model was asked, with what became of its score."""
    before = suites_of(scored.base) if scored.base else {}
    after = {(suite.name, suite.metric): suite for suite in (scored.tuned.suites if scored.tuned else ())}
    for key in dict.fromkeys([*before, *after]):
        yield _suite_line(key, before.get(key), after.get(key))


def _suite_line(key: tuple[str, str], before: Suite | None, after: Suite | None) -> SuiteLine:
    name, metric = key
    change, verdict = numbers.ABSENT, "not asked of both"
    if before and after and before.digest == after.digest:
        change = numbers.change(before.value, after.value, _unit(after))
        verdict = _suite_verdict(before, after)
    n = after.n if after else before.n if before else 0
    return SuiteLine(name, metric, n, _suite_text(before), _suite_text(after), change, verdict)


def _unit(suite: Suite) -> str:
    """Name a metric that is written like this suite's: as a share, or as a plain number."""
    return "accuracy" if suite.higher_is_better and 0 <= suite.value <= 1 else "perplexity"


def _suite_text(suite: Suite | None) -> str:
    if suite is None:
        return "not asked"
    ends = (numbers.score(end, _unit(suite)) for end in (suite.value, suite.low, suite.high))
    return "{} ({} to {})".format(*ends)


def _suite_verdict(before: Suite, after: Suite) -> str:
    apart = after.high < before.low or after.low > before.high
    if not apart:
        return "within chance"
    return "better" if (after.value > before.value) == after.higher_is_better else "worse"


# Examples whose score moved


def moved(scored: Scored) -> MovedMost:
    """Return the examples that lost and gained most; scores of right or wrong say no more than the answers do."""
    found = list(_moved(scored))
    return MovedMost(
        tuple(one for gain, one in found if gain < 0)[:MOST_MOVED],
        tuple(one for gain, one in reversed(found) if gain > 0)[:MOST_MOVED],
    )


def _moved(scored: Scored) -> Iterator[tuple[float, Moved]]:
    """Yield examples with their gain in the primary metric, worst first."""
    base, tuned = scored.shown, scored.tuned
    if base is None or tuned is None or base.ids != tuned.ids:
        return
    metric, rows = tuned.metric, {row.id: row for row in scored.answers}
    before, after = base.scores.get(metric, ()), tuned.scores.get(metric, ())
    if len(before) != len(after) or set(before) | set(after) <= {0.0, 1.0}:
        return
    sign = -1 if metric in LOWER_IS_BETTER else 1
    changes = [
        (sign * (now - old), key, old, now) for key, old, now in zip(tuned.ids, before, after, strict=False)
    ]
    for gain, key, old, now in sorted(changes, key=lambda change: change[:2]):
        if key in rows:
            yield gain, Moved(rows[key], numbers.number(old), numbers.number(now), numbers.signed(now - old))
