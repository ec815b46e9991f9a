"""Several tries at a question: how often one is right, how good the best one is, and what one more of them adds.

Per question, a model draws n answers; c of them are right. What k of them are worth is the mean over all
choices of k among the n, which is unbiased; looking at the first k is unbiased too, but throws the others away.
"""

import itertools
import math
from collections.abc import Sequence

from core.evaluation.reports import AtK

COLLAPSE = 0.01
"""Tries have collapsed where one more adds less than this to pass@k: one question in a hundred."""
ROUNDING = 1e-12
"""Differences below this are rounding."""
ONE_TRY = "there is one try, and no further one"
NONE_RIGHT = "no answer was right"


def pass_at_k(n: int, right: int, k: int) -> float:
    """Return the chance that k of n answers, drawn without replacement, hold a right one.

    1 - C(n - c, k) / C(n, k): unbiased, unlike 1 - (1 - c/n)^k (arXiv:2107.03374, eq. 1).

    Args:
        n: Answers.
        right: How many of them are right, c.
        k: How many are drawn.

    Raises:
        ValueError: Unless 0 <= right <= n and 1 <= k <= n.
    """
    if not (0 <= right <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} is undefined for {right} right of {n}")
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def usq_at_k(scores: Sequence[float], k: int) -> float:
    """Return the expected best score among k of n answers: what a user who picks the best one gets.

    With scores sorted upwards, the i-th is the best of C(i - 1, k - 1) of the C(n, k) choices. For scores of
    0 and 1 it is pass@k.

    Args:
        scores: Of all n answers to one question.
        k: How many are drawn.

    Raises:
        ValueError: Unless 1 <= k <= n.
    """
    n = len(scores)
    if not 1 <= k <= n:
        raise ValueError(f"USQ@{k} is undefined for {n} answers")
    choices = math.comb(n, k)
    return math.fsum(
        score * (math.comb(place, k - 1) / choices)
        for place, score in enumerate(sorted(scores))
        if place >= k - 1
    )


def independent_pass_at_k(rate: float, k: int) -> float:
    """Return pass@k of k independent tries that are each right at one and the same rate: 1 - (1 - p)^k."""
    return 1 - (1 - rate) ** k


def efficiency_ratio(passed: float, first: float, k: int) -> float | None:
    """Return DER@k, pass@k / (k pass@1): the share of right tries' worth that is left after k of them.

    It is 1/k if all k tries are the same answer, and (1 - (1 - p)^k) / (k p) if they are independent at the
    rate p. Both fall with k, so that a fixed threshold judges k and not the model. None if pass@1 is 0.
    """
    return passed / (k * first) if first > 0 else None


def tries_efficiency(passed: float, first: float, k: int) -> float | None:
    """Place pass@k between k equal tries, 0, and k independent ones at the same rate on every question, 1.

    (pass@k - p) / (1 - (1 - p)^k - p) with p = pass@1, which is DER@k between its two references. Rates that
    differ between questions lower it (Jensen): at worst a question is always right or never. Above 1 only by
    chance. None where the two references are one: k = 1, or p of 0 or 1.
    """
    room = independent_pass_at_k(first, k) - first
    return (passed - first) / room if room > ROUNDING else None


def collapse_point(passed: Sequence[float], below: float = COLLAPSE) -> int | None:
    """Return the smallest k from which one further try adds less than a threshold to pass@k.

    Without any right answer there is none: tries that are worth nothing from the first on have not come to be so.

    Args:
        passed: pass@1 to pass@n; each adds no more than the one before.
        below: The threshold.

    Returns:
        The k, or None; ``no_collapse`` says why.
    """
    if passed[-1] == 0:
        return None
    gains = [after - before for before, after in itertools.pairwise(passed)]
    return next((k for k, gain in enumerate(gains, 1) if gain < below - ROUNDING), None)


def no_collapse(passed: Sequence[float]) -> str:
    """Say why pass@1 to pass@n have no collapse point."""
    if len(passed) == 1:
        return ONE_TRY
    return NONE_RIGHT if passed[-1] == 0 else f"every one of {len(passed)} tries adds more"


def tries(passed: Sequence[float], best: Sequence[float]) -> tuple[AtK, ...]:
    """Lay out what k tries are worth, beside what they would be worth if equal and if independent.

    Args:
        passed: pass@1 to pass@n, over all questions.
        best: USQ@1 to USQ@n.
    """
    first = passed[0]
    return tuple(_at(k, first, each, usq) for k, (each, usq) in enumerate(zip(passed, best, strict=True), 1))


def _at(k: int, first: float, passed: float, usq: float) -> AtK:
    independent = independent_pass_at_k(first, k)
    ratio, share = efficiency_ratio(passed, first, k), tries_efficiency(passed, first, k)
    absent = {} if first > 0 else dict.fromkeys(("der", "der_independent"), "no answer was right")
    if share is None:
        absent["efficiency"] = (
            "one try has nothing to be different from"
            if k == 1
            else "pass@1 leaves nothing to gain or no right try"
        )
    return AtK(
        k=k,
        pass_at=passed,
        usq_at=usq,
        independent=independent,
        der=ratio,
        der_independent=efficiency_ratio(independent, first, k),
        der_identical=1 / k,
        efficiency=share,
        absent=absent,
    )
