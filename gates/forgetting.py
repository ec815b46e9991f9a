"""What the tuned model knew before it was tuned, and no longer does."""

from collections.abc import Iterator

from core.evaluation.reports import BaselineReport, EvalReport, Suite
from core.evaluation.statistics import Interval, paired_difference
from gates.verdict import Check, at_most, equals, limit, near

Key = tuple[str, str]
"""Name and metric: a benchmark may report several."""


def remembered(baseline: BaselineReport, tuned: EvalReport, most: float | None) -> Iterator[Check]:
    """Compare base and tuned model on every other set that the base was asked.

    A fall closes the gate only if it is larger than allowed and larger than chance: on a few dozen
    questions a few points come and go by themselves. Only shares of right answers are compared; the
    perplexity of a benchmark has another unit.

    Args:
        baseline: The base model's arms; a suite may be reported by any of them.
        tuned: The tuned model's report.
        most: Largest fall, in points of 1; None compares nothing.
    """
    if most is None:
        return
    before, after = suites_of(baseline), {(suite.name, suite.metric): suite for suite in tuned.suites}
    for key in sorted({*before, *after}):
        yield from _compared(" ".join(key), before.get(key), after.get(key), tuned, most)


def suites_of(baseline: BaselineReport) -> dict[Key, Suite]:
    """Return every suite that any arm of the base reports; the first arm's counts."""
    found: dict[Key, Suite] = {}
    for arm in baseline.arms:
        for suite in arm.suites:
            found.setdefault((suite.name, suite.metric), suite)
    return found


def _compared(
    name: str, before: Suite | None, after: Suite | None, tuned: EvalReport, most: float
) -> Iterator[Check]:
    yield equals(
        f"{name} questions",
        after.digest if after else "not asked",
        before.digest if before else "not asked",
        "the tuned model's against the base's",
    )
    if before is None or after is None or before.digest != after.digest:
        return
    yield equals(f"{name} number of questions", after.n, before.n)
    yield from _adds_up(f"{name} base", before)
    yield from _adds_up(f"{name} tuned", after)
    if after.n == before.n and _is_share(before) and _is_share(after):
        yield limit(_fallen(name, before, after, tuned, most))


def _is_share(suite: Suite) -> bool:
    return suite.higher_is_better and 0 <= suite.value <= 1


def _adds_up(label: str, suite: Suite) -> Iterator[Check]:
    """Check a suite's value where it comes with a score per question; a library may give none."""
    if suite.scores:
        yield equals(f"{label} scores", len(suite.scores), suite.n)
        yield near(f"{label} value", suite.value, sum(suite.scores) / len(suite.scores))


def _fallen(name: str, before: Suite, after: Suite, tuned: EvalReport, most: float) -> Check:
    ends = _fall(before, after, tuned)
    told = f"{before.value:.3f} to {after.value:.3f} on {after.n} questions"
    if ends.low > 0:
        detail = f"{told}; the fall is {ends.low:.3f} to {ends.high:.3f}"
        return at_most(f"{name} fall beyond chance", ends.value, most, detail)
    detail = f"{told}; {ends.low:.3f} to {ends.high:.3f}, so none that is larger than chance"
    return at_most(f"{name} fall beyond chance", 0.0, most, detail)


def _fall(before: Suite, after: Suite, tuned: EvalReport) -> Interval:
    """Return the fall with its paired interval; without scores the two intervals must lie apart."""
    if before.scores and len(before.scores) == len(after.scores):
        return paired_difference(
            after.scores,
            before.scores,
            resamples=tuned.resamples,
            confidence=tuned.confidence,
            seed=tuned.seed,
        )
    return Interval(before.value - after.value, before.low - after.high, before.high - after.low)
