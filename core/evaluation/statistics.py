"""Intervals and paired tests over per-example scores.

All intervals are percentile bootstrap intervals (Efron and Tibshirani, An Introduction to the
Bootstrap, ch. 13). Two models are always compared on the same examples, so examples are resampled
in pairs: what makes an example hard for both models then cancels out.

scipy is imported where it is used, because importing it takes most of a second.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Scores: TypeAlias = NDArray[np.float64]

CELLS = 4_000_000
"""Resampled scores held in memory at once; larger jobs are done in batches."""


class Interval(NamedTuple):
    """A point value with the ends of its interval."""

    value: float
    low: float
    high: float


class Flips(NamedTuple):
    """Examples whose right-or-wrong changed between two models, and how surprising that is."""

    fixed: int
    """Wrong before, right now."""
    broken: int
    """Right before, wrong now."""
    p_value: float
    """Two-sided exact probability of a split at least this uneven if both models were equally good."""


def mean_interval(scores: Sequence[float], *, resamples: int, confidence: float, seed: int) -> Interval:
    """Return the mean of scores with its bootstrap interval.

    Equal scores, or a single one, give an interval of width zero: resampling cannot show
    a spread that the sample does not have. Ask for enough examples elsewhere.

    Args:
        scores: One score per example.
        resamples: Bootstrap resamples.
        confidence: Coverage of the interval, between 0 and 1.
        seed: Decides the resamples.

    Raises:
        ValueError: If there are no scores, or one is not finite.
    """
    return _bootstrap((_array(scores),), _mean, resamples, confidence, seed)


def paired_difference(
    base: Sequence[float], candidate: Sequence[float], *, resamples: int, confidence: float, seed: int
) -> Interval:
    """Return mean(candidate) - mean(base) with its paired bootstrap interval.

    Resampling pairs and resampling their differences is the same thing for a difference of means.

    Args:
        base: Score of the first model per example.
        candidate: Score of the second model on the same examples, in the same order.
        resamples: Bootstrap resamples.
        confidence: Coverage of the interval, between 0 and 1.
        seed: Decides the resamples.

    Raises:
        ValueError: If the lengths differ, there are no scores, or one is not finite.
    """
    before, after = _pair(base, candidate)
    return _bootstrap((after - before,), _mean, resamples, confidence, seed)


def paired_relative_gain(
    base: Sequence[float],
    candidate: Sequence[float],
    *,
    floor: float,
    resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Return (mean(candidate) - mean(base)) / max(mean(base), floor) with its paired interval.

    A relative gain over zero is undefined, and a base that is right once in a hundred examples is
    wrong in all of them in every third resample. The floor enters the point value and every
    resample alike, so the result is finite, continuous in the base, and zero when nothing changed.

    Args:
        base: Score of the first model per example, none negative.
        candidate: Score of the second model on the same examples, in the same order.
        floor: Smallest denominator, above 0; a base below it counts as this much.
        resamples: Bootstrap resamples.
        confidence: Coverage of the interval, between 0 and 1.
        seed: Decides the resamples.

    Raises:
        ValueError: If the floor is not positive, the lengths differ, there are no scores, or
            one is not finite.
    """
    if not floor > 0:
        raise ValueError(f"floor must be above 0, not {floor}")

    def gain(before: Scores, after: Scores, axis: int = -1) -> Scores:
        start = before.mean(axis=axis)
        relative: Scores = (after.mean(axis=axis) - start) / np.maximum(start, floor)
        return relative

    return _bootstrap(_pair(base, candidate), gain, resamples, confidence, seed)


def perplexity_interval(
    losses: Sequence[float], tokens: Sequence[float], *, resamples: int, confidence: float, seed: int
) -> Interval:
    """Return exp(sum of losses / sum of tokens) with its bootstrap interval over examples.

    Examples are resampled whole, for the tokens of one depend on each other; long ones weigh more.

    Args:
        losses: Mean loss per token of each example, in nats.
        tokens: Tokens of each example.
        resamples: Bootstrap resamples.
        confidence: Coverage of the interval, between 0 and 1.
        seed: Decides the resamples.

    Raises:
        ValueError: If the lengths differ, there are no losses, one is not finite, or a count is not positive.
    """
    return _bootstrap(_weighted(losses, tokens), _perplexity, resamples, confidence, seed)


def paired_perplexity_gain(
    base: tuple[Sequence[float], Sequence[float]],
    candidate: tuple[Sequence[float], Sequence[float]],
    *,
    relative: bool = True,
    resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Return how much lower the candidate's perplexity is, with its paired bootstrap interval.

    Lower is better, so a gain is positive: (base - candidate) / base, or base - candidate.

    Args:
        base: Mean losses per token and token counts of the first model, by example.
        candidate: The same of the second model, on the same examples in the same order.
        relative: As a share of the base's perplexity, which is at least 1, so that no floor is needed.
        resamples: Bootstrap resamples.
        confidence: Coverage of the interval, between 0 and 1.
        seed: Decides the resamples.

    Raises:
        ValueError: As ``perplexity_interval`` does.
    """

    def gain(a: Scores, m: Scores, b: Scores, n: Scores, axis: int = -1) -> Scores:
        before, after = _perplexity(a, m, axis), _perplexity(b, n, axis)
        fall: Scores = before - after
        return fall / before if relative else fall

    _pair(base[0], candidate[0])
    samples = (*_weighted(*base), *_weighted(*candidate))
    return _bootstrap(samples, gain, resamples, confidence, seed)


def mcnemar(base: Sequence[float], candidate: Sequence[float]) -> Flips:
    """Test whether two models differ on the same examples, for scores that are 0 or 1.

    Under equal quality, the examples that changed are fair coin flips between fixed and broken;
    the exact binomial test needs no minimum count (McNemar, Psychometrika 12, 1947).

    Args:
        base: 0 or 1 per example for the first model.
        candidate: 0 or 1 on the same examples, in the same order.

    Raises:
        ValueError: If a score is neither 0 nor 1, or the lengths differ.
    """
    from scipy import stats  # type: ignore[import-untyped, unused-ignore]

    before, after = _pair(base, candidate)
    if not np.isin(np.concatenate([before, after]), (0.0, 1.0)).all():
        raise ValueError("McNemar's test is for scores of 0 or 1 only")
    fixed, broken = int((after > before).sum()), int((after < before).sum())
    if fixed + broken == 0:
        return Flips(0, 0, 1.0)
    return Flips(fixed, broken, float(stats.binomtest(fixed, fixed + broken, 0.5).pvalue))


def detectable_difference(
    n: int, *, confidence: float = 0.95, power: float = 0.8, spread: float = 0.5
) -> float:
    """Return the smallest mean difference that n paired examples would detect.

    The normal approximation: (z(1 - (1 - confidence) / 2) + z(power)) * spread / sqrt(n),
    with z the standard normal quantile.

    Args:
        n: Paired examples.
        confidence: One minus the two-sided error rate of the test.
        power: Chance with which a difference of this size is found.
        spread: Standard deviation of the paired differences. For 0/1 scores of two about equally
            good models it is the square root of the share of answers that change: 0.5 for a quarter.

    Raises:
        ValueError: If n is not positive.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    z = NormalDist().inv_cdf
    return (z(0.5 + confidence / 2) + z(power)) * spread / math.sqrt(n)


def _mean(scores: Scores, axis: int = -1) -> Scores:
    mean: Scores = scores.mean(axis=axis)
    return mean


def _perplexity(losses: Scores, tokens: Scores, axis: int = -1) -> Scores:
    total: Scores = (losses * tokens).sum(axis=axis) / tokens.sum(axis=axis)
    return np.exp(total)


def _weighted(losses: Sequence[float], tokens: Sequence[float]) -> tuple[Scores, Scores]:
    values, counts = _pair(losses, tokens)
    if not (counts > 0).all():
        raise ValueError("an example without tokens has no loss")
    return values, counts


def _array(scores: Sequence[float]) -> Scores:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError("an interval needs at least one score")
    if not np.isfinite(array).all():
        raise ValueError("a score is not a finite number")
    return array


def _pair(base: Sequence[float], candidate: Sequence[float]) -> tuple[Scores, Scores]:
    before, after = _array(base), _array(candidate)
    if before.size != after.size:
        raise ValueError(f"paired scores must be of equal number, not {before.size} and {after.size}")
    return before, after


def _bootstrap(
    samples: tuple[Scores, ...],
    statistic: Callable[..., Scores],
    resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    value = float(statistic(*samples))
    if all(np.ptp(sample) == 0 for sample in samples):
        return Interval(value, value, value)
    from scipy import stats  # type: ignore[import-untyped, unused-ignore]

    ends = stats.bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, CELLS // samples[0].size),
        confidence_level=confidence,
        method="percentile",
        # Settings allow negative seeds, numpy does not.
        rng=np.random.default_rng(seed % 2**64),
    ).confidence_interval
    return Interval(value, float(ends.low), float(ends.high))
