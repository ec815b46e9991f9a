"""Significance tests and effect sizes over per-example scores of two models.

Every function takes one score per example of each model, never one number per model. Intervals and
McNemar's test are in ``core.evaluation.statistics``.

scipy is imported where it is used, because importing it takes most of a second.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from core.evaluation.statistics import Flips, Interval, Scores, mcnemar, paired_difference


class Comparison(NamedTuple):
    """Everything that the scores of two models on the same examples say about their difference."""

    n: int
    difference: Interval
    """mean(candidate) - mean(base)."""
    flips: Flips | None
    """McNemar's test; None unless all scores are 0 or 1."""
    odds_ratio: float | None
    """Fixed to broken; None unless all scores are 0 or 1."""
    wilcoxon_p: float
    rank_biserial: float
    t_p: float
    mann_whitney_p: float
    cohens_dz: float | None
    cohens_d: float | None
    cliffs_delta: float


def comparison(
    base: Sequence[float], candidate: Sequence[float], *, resamples: int, confidence: float, seed: int
) -> Comparison:
    """Compare two models by all tests at once.

    Args:
        base: Score of the first model per example.
        candidate: Score of the second model on the same examples, in the same order.
        resamples: Bootstrap resamples.
        confidence: Coverage of the interval, between 0 and 1.
        seed: Decides the resamples.

    Raises:
        ValueError: If the lengths differ, there are no scores, or one is not finite.
    """
    ends = paired_difference(base, candidate, resamples=resamples, confidence=confidence, seed=seed)
    binary = set(base) | set(candidate) <= {0.0, 1.0}
    flips = mcnemar(base, candidate) if binary else None
    return Comparison(
        n=len(base),
        difference=ends,
        flips=flips,
        odds_ratio=odds_ratio(flips) if flips else None,
        wilcoxon_p=wilcoxon(base, candidate),
        rank_biserial=rank_biserial(base, candidate),
        t_p=paired_t(base, candidate),
        mann_whitney_p=mann_whitney(base, candidate),
        cohens_dz=cohens_dz(base, candidate),
        cohens_d=cohens_d(base, candidate),
        cliffs_delta=cliffs_delta(base, candidate),
    )


def wilcoxon(base: Sequence[float], candidate: Sequence[float]) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; equal pairs are left out (Wilcoxon 1945).

    With no pair that differs there is no evidence: 1.
    """
    from scipy import stats  # type: ignore[import-untyped, unused-ignore]

    changes = _changes(base, candidate)
    if not changes.any():
        return 1.0
    return float(stats.wilcoxon(changes, zero_method="wilcox").pvalue)


def rank_biserial(base: Sequence[float], candidate: Sequence[float]) -> float:
    """Return the signed-rank sum over the sum of all ranks, from -1 to 1: which way Wilcoxon's test points.

    (W+ - W-) / (W+ + W-), ranks of the sizes of differences, equal pairs left out (Kerby 2014, simple difference
    formula). Above 0 the candidate is higher, though its mean may be lower: ranks do not see how far a few
    examples fell. With no pair that differs there is no direction: 0.
    """
    from scipy import stats

    changes = _changes(base, candidate)
    changes = changes[changes != 0]
    if not changes.size:
        return 0.0
    ranks = stats.rankdata(np.abs(changes))
    return float((np.sign(changes) * ranks).sum() / ranks.sum())


def paired_t(base: Sequence[float], candidate: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's t-test on paired scores.

    Differences that are all zero, or a single one, are no evidence: 1. Equal ones other than zero have no
    spread to judge by, which is the limit 0.
    """
    from scipy import stats

    changes = _changes(base, candidate)
    if changes.size < 2 or not changes.any():
        return 1.0
    if _flat(changes):
        return 0.0
    return float(stats.ttest_1samp(changes, 0.0).pvalue)


def mann_whitney(base: Sequence[float], candidate: Sequence[float]) -> float:
    """Return the two-sided p-value of the Mann-Whitney U test, which does not know about pairs.

    It is for scores of different examples; on the same ones the paired tests see more.
    """
    from scipy import stats

    before, after = _array(base), _array(candidate)
    if _flat(np.concatenate([before, after])):
        return 1.0
    return float(stats.mannwhitneyu(after, before, alternative="two-sided").pvalue)


def cohens_dz(base: Sequence[float], candidate: Sequence[float]) -> float | None:
    """Return the mean difference in standard deviations of the differences (Lakens 2013, d_z).

    None if the differences do not vary, or there is only one, unless all are zero: then 0.
    """
    changes = _changes(base, candidate)
    if not changes.any():
        return 0.0
    return None if _flat(changes) else float(changes.mean() / changes.std(ddof=1))


def cohens_d(base: Sequence[float], candidate: Sequence[float]) -> float | None:
    """Return the difference of means in pooled standard deviations (Cohen 1988, section 2.2).

    None if neither model's scores vary, unless the means are equal: then 0.
    """
    before, after = _array(base), _array(candidate)
    gap = float(after.mean() - before.mean())
    freedom = before.size + after.size - 2
    if gap == 0:
        return 0.0
    if _flat(before) and _flat(after):
        return None
    squares = float(((before - before.mean()) ** 2).sum() + ((after - after.mean()) ** 2).sum())
    return gap / float(np.sqrt(squares / freedom))


def cliffs_delta(base: Sequence[float], candidate: Sequence[float]) -> float:
    """Return how much likelier a score of the candidate is above one of the base than below it (Cliff 1993).

    P(candidate > base) - P(candidate < base) over all pairs of examples = 2 U / (n m) - 1.
    """
    from scipy import stats

    before, after = _array(base), _array(candidate)
    u = stats.mannwhitneyu(after, before, method="asymptotic").statistic
    return float(2 * u / (before.size * after.size) - 1)


def odds_ratio(flips: Flips) -> float:
    """Return fixed over broken; if either is 0, half an example is added to both (Haldane 1956)."""
    half = 0.5 if 0 in (flips.fixed, flips.broken) else 0.0
    return (flips.fixed + half) / (flips.broken + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for being several: the chance of one false alarm among all stays below the level (Holm 1979).

    The i-th smallest of m is multiplied by m - i + 1, and is never below the ones before it.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def _array(scores: Sequence[float]) -> Scores:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError("a test needs at least one score of each model")
    if not np.isfinite(array).all():
        raise ValueError("a score is not a finite number")
    return array


def _changes(base: Sequence[float], candidate: Sequence[float]) -> Scores:
    before, after = _array(base), _array(candidate)
    if before.size != after.size:
        raise ValueError(f"paired scores must be of equal number, not {before.size} and {after.size}")
    return after - before


def _flat(values: Scores) -> bool:
    return bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())))
