"""Tests and effect sizes against SciPy on other routes, enumeration, and values worked out by hand."""

import itertools
import math
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as table_mcnemar

from core.evaluation.effects import (
    cliffs_delta,
    cohens_d,
    cohens_dz,
    comparison,
    mann_whitney,
    odds_ratio,
    paired_t,
    rank_biserial,
    wilcoxon,
)
from core.evaluation.statistics import Flips, mcnemar

BASE = (0.1, 0.9, 0.3, 0.0, 0.55, 0.42, 0.61)
CANDIDATE = (0.6, 0.8, 0.7, 0.25, 1.0, 0.4, 0.9)
FLAT = (0.5,) * 4


def test_wilcoxon_is_the_share_of_signs_at_least_as_uneven():
    changes = np.subtract(CANDIDATE, BASE)
    ranks = stats.rankdata(np.abs(changes))
    seen = min(ranks[changes > 0].sum(), ranks[changes < 0].sum())
    sums = [
        sum(r for r, up in zip(ranks, signs, strict=True) if up)
        for signs in itertools.product((0, 1), repeat=7)
    ]
    expected = np.mean([min(total, ranks.sum() - total) <= seen + 1e-9 for total in sums])
    assert wilcoxon(BASE, CANDIDATE) == pytest.approx(expected)


def test_equal_pairs_are_left_out_of_wilcoxon():
    assert wilcoxon((*BASE, 0.3, 0.4), (*CANDIDATE, 0.3, 0.4)) == pytest.approx(
        wilcoxon(BASE, CANDIDATE), abs=0.02
    )
    assert wilcoxon(BASE, BASE) == 1.0


def test_the_signed_rank_sum_points_where_most_and_larger_differences_do():
    # Differences 0.1, -0.2, 0.3, none and -0.3: ranks 1, 2, 3.5 and 3.5.
    assert rank_biserial((0, 0, 0, 0.4, 0), (0.1, -0.2, 0.3, 0.4, -0.3)) == pytest.approx((1 - 2) / 10)
    assert rank_biserial((0, 0, 0, 0), (0.1, 0.1, 0.1, -0.9)) == pytest.approx((6 - 4) / 10)
    assert (rank_biserial(FLAT, FLAT), rank_biserial((0, 0), (1, 2)), rank_biserial((1, 2), (0, 0))) == (
        0,
        1,
        -1,
    )


def test_the_signed_rank_sum_is_the_one_that_wilcoxon_judges():
    least = stats.wilcoxon(np.subtract(CANDIDATE, BASE)).statistic
    assert rank_biserial(BASE, CANDIDATE) == pytest.approx(1 - 2 * least / 28)
    assert rank_biserial(CANDIDATE, BASE) == pytest.approx(2 * least / 28 - 1)


def test_paired_t_follows_students_distribution():
    changes = [b - a for a, b in zip(BASE, CANDIDATE, strict=True)]
    t = mean(changes) / (stdev(changes) / math.sqrt(7))
    assert paired_t(BASE, CANDIDATE) == pytest.approx(2 * stats.t.sf(abs(t), 6))
    assert paired_t(BASE, BASE) == 1.0
    assert paired_t((0.2,), (0.9,)) == 1.0
    assert paired_t((0.1, 0.2, 0.3), (0.2, 0.3, 0.4)) == 0.0


def test_mann_whitney_is_the_share_of_arrangements_at_least_as_uneven():
    left, right = (0.1, 0.4, 0.35), (0.8, 0.9, 0.3, 0.7)
    u = sum(b > a for a in left for b in right)
    pooled = left + right
    counts = [
        sum(
            b > a
            for i, a in enumerate(pooled)
            if i in chosen
            for j, b in enumerate(pooled)
            if j not in chosen
        )
        for chosen in itertools.combinations(range(7), 3)
    ]
    assert mann_whitney(left, right) == pytest.approx(np.mean([abs(c - 6) >= abs(u - 6) for c in counts]))
    assert mann_whitney(FLAT, FLAT) == 1.0


def test_effect_sizes_by_hand():
    assert cohens_dz((0, 0, 0, 0), (1, 2, 3, 4)) == pytest.approx(2.5 / stdev((1, 2, 3, 4)))
    # Pooled over different spreads and sizes: squares 2 and 8 over 3 + 3 - 2.
    assert cohens_d((1, 2, 3), (3, 5, 7)) == pytest.approx(3 / math.sqrt(10 / 4))
    assert cohens_d((1, 3), (2, 2, 2)) == 0.0
    assert odds_ratio(Flips(12, 4, 0.0)) == 3.0
    assert odds_ratio(Flips(5, 0, 0.0)) == 11.0
    assert odds_ratio(Flips(0, 5, 0.0)) == pytest.approx(1 / 11)
    assert odds_ratio(Flips(0, 0, 1.0)) == 1.0


@pytest.mark.parametrize(
    ("base", "candidate"), [(BASE, CANDIDATE), ((0, 1, 1), (1, 1, 0, 1)), ((0, 0), (1, 1)), (FLAT, FLAT)]
)
def test_cliffs_delta_counts_all_pairs(base, candidate):
    pairs = [(b > a) - (b < a) for a in base for b in candidate]
    assert cliffs_delta(base, candidate) == pytest.approx(sum(pairs) / len(pairs))


def test_an_effect_without_any_spread_is_undefined_unless_there_is_none():
    assert cohens_dz(FLAT, (0.75,) * 4) is None
    assert cohens_d(FLAT, (0.75,) * 4) is None
    assert cohens_dz((0.1, 0.2, 0.3), (0.2, 0.3, 0.4)) is None
    assert cohens_dz(BASE, BASE) == cohens_d(BASE, BASE) == 0.0
    assert cohens_dz((0.2,), (0.9,)) is None


@pytest.mark.parametrize("function", [wilcoxon, paired_t, mann_whitney, cohens_dz, cohens_d, cliffs_delta])
def test_scores_that_are_none_are_refused(function):
    for scores in ((), (math.nan, 1.0), (math.inf, 0.0)):
        with pytest.raises(ValueError):
            function(scores, (1.0, 0.0))


@pytest.mark.parametrize("function", [wilcoxon, paired_t, cohens_dz])
def test_paired_tests_need_pairs(function):
    with pytest.raises(ValueError, match="not 1 and 2"):
        function((1.0,), (1.0, 0.0))


@pytest.mark.parametrize(("fixed", "broken"), [(7, 2), (1, 0), (12, 12), (30, 11)])
def test_mcnemar_agrees_with_statsmodels(fixed, broken):
    base = (0.0,) * fixed + (1.0,) * broken + (1.0, 0.0)
    candidate = (1.0,) * fixed + (0.0,) * broken + (1.0, 0.0)
    expected = table_mcnemar([[1, fixed], [broken, 1]], exact=True).pvalue
    assert mcnemar(base, candidate).p_value == pytest.approx(min(1.0, expected))


def test_a_comparison_holds_all_of_them():
    how = {"resamples": 1000, "confidence": 0.95, "seed": 1}
    found = comparison(BASE, CANDIDATE, **how)
    assert (found.n, found.flips, found.odds_ratio) == (7, None, None)
    assert found.difference.value == pytest.approx(mean(CANDIDATE) - mean(BASE))
    assert found.cohens_dz == cohens_dz(BASE, CANDIDATE)
    assert found.t_p == paired_t(BASE, CANDIDATE)
    binary = comparison((0.0, 1.0, 0.0), (1.0, 1.0, 1.0), **how)
    assert binary.flips == Flips(2, 0, 0.5)
    assert binary.odds_ratio == 5.0


def test_importing_costs_neither_scipy_nor_torch():
    code = "import sys, core.evaluation.effects; print({'torch', 'scipy'} & set(sys.modules))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
