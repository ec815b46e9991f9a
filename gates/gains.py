"""How much better one model is than another on the same examples, whichever way its metric points."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from core.evaluation.effects import cohens_dz, odds_ratio
from core.evaluation.reports import LOWER_IS_BETTER, EvalReport
from core.evaluation.statistics import (
    Interval,
    detectable_difference,
    mcnemar,
    paired_difference,
    paired_perplexity_gain,
    paired_relative_gain,
)
from gates.verdict import ROUNDING

POWER = 0.8
"""Chance of detection behind what a test set "could have detected"."""

Mode = Literal["relative", "absolute"]


class Unit(NamedTuple):
    """How a gain is measured."""

    mode: Mode
    """relative: share of the base's value; absolute: difference in the metric's own unit."""
    floor: float
    """Smallest base score that a relative gain divides by; perplexities, never below 1, need none."""


class Pair(NamedTuple):
    """The base and the tuned model in one metric, which both have measured."""

    metric: str
    base: EvalReport
    after: EvalReport

    @property
    def values(self) -> tuple[float, float]:
        """Value before and after."""
        return self.base.metrics[self.metric].value, self.after.metrics[self.metric].value

    @property
    def scores(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Scores by example, before and after."""
        return self.base.scores[self.metric], self.after.scores[self.metric]

    @property
    def falls(self) -> bool:
        """Less is better."""
        return self.metric in LOWER_IS_BETTER

    @property
    def improvements(self) -> list[float]:
        """How much better each example's score became."""
        sign = -1 if self.falls else 1
        return [sign * (now - before) for before, now in zip(*self.scores, strict=True)]


def better(metric: str, candidate: float, champion: float) -> bool:
    """Tell whether a value beats another one in this metric."""
    return candidate < champion if metric in LOWER_IS_BETTER else candidate > champion


def point_gain(metric: str, before: float, after: float, unit: Unit) -> float | None:
    """Return the gain of the values; None where a share of nothing is asked for."""
    falls = metric in LOWER_IS_BETTER
    gain = before - after if falls else after - before
    if unit.mode == "absolute":
        return gain
    whole = before if falls else max(before, unit.floor)
    return gain / whole if whole > 0 else None


def gain_interval(pair: Pair, unit: Unit) -> Interval:
    """Return the gain with the paired bootstrap interval that the tuned model's report asks for."""
    before, now = pair.scores
    report = pair.after
    resamples, confidence, seed = report.resamples, report.confidence, report.seed
    if pair.falls:
        return paired_perplexity_gain(
            (before, pair.base.weights[pair.metric]),
            (now, pair.after.weights[pair.metric]),
            relative=unit.mode == "relative",
            resamples=resamples,
            confidence=confidence,
            seed=seed,
        )
    if unit.mode == "absolute":
        return paired_difference(before, now, resamples=resamples, confidence=confidence, seed=seed)
    return paired_relative_gain(
        before, now, floor=unit.floor, resamples=resamples, confidence=confidence, seed=seed
    )


def changes(pair: Pair) -> list[str]:
    """Say in examples and in effect sizes what changed."""
    told = []
    before, now = pair.scores
    if _is_right_or_wrong(before, now):
        flips = mcnemar(before, now)
        told += [
            f"{flips.fixed} fixed, {flips.broken} broken, McNemar p = {flips.p_value:.2g}",
            f"odds ratio {odds_ratio(flips):.3g}",
        ]
    # Of paired samples; positive is better, whichever way the metric points.
    effect = cohens_dz(now, before) if pair.falls else cohens_dz(before, now)
    return [*told, f"Cohen's d {effect:.2f}"] if effect is not None else told


def resolution(pair: Pair, interval: Interval) -> str:
    """Give the interval, and for scores the difference that this many examples could have detected."""
    n, confidence = pair.after.n, pair.after.confidence
    text = f"{confidence:.4g} interval {interval.low:.3f} to {interval.high:.3f}"
    improvements = pair.improvements
    centre = math.fsum(improvements) / n
    spread = math.sqrt(math.fsum((one - centre) ** 2 for one in improvements) / n)
    if pair.falls or spread < ROUNDING or confidence >= 1:
        return text
    points = 100 * detectable_difference(n, confidence=confidence, power=POWER, spread=spread)
    return f"{text}; {n} examples could not have detected less than {points:.1f} points (power {POWER})"


def _is_right_or_wrong(before: Sequence[float], now: Sequence[float]) -> bool:
    return set(before) | set(now) <= {0.0, 1.0}
