"""Intervals and tests against closed forms and exact enumeration of every resample."""

import math
import subprocess
import sys
from itertools import product
from pathlib import Path
from statistics import NormalDist, pstdev

import numpy as np
import pytest

from core.evaluation import statistics as room
from core.evaluation.statistics import (
    detectable_difference,
    mcnemar,
    mean_interval,
    paired_difference,
    paired_perplexity_gain,
    paired_relative_gain,
    perplexity_interval,
)

HOW = {"resamples": 20_000, "confidence": 0.9, "seed": 7}
SLACK = 0.012
"""Four standard errors of a tail share estimated from 20,000 resamples, and a little."""

BASE = (0.1, 0.9, 0.3, 0.0, 0.55)
CANDIDATE = (0.6, 0.8, 0.7, 0.25, 1.0)


def every_resample(n):
    """All n^n ways to draw n indices: the exact bootstrap distribution."""
    return np.array(list(product(range(n), repeat=n)))


def assert_quantile(distribution, end, level):
    """The end cuts off the level's share of the exact distribution, up to Monte Carlo error."""
    assert np.mean(distribution < end - 1e-12) <= level + SLACK
    assert np.mean(distribution <= end + 1e-12) >= level - SLACK


def assert_interval(distribution, interval):
    assert_quantile(distribution, interval.low, 0.05)
    assert_quantile(distribution, interval.high, 0.95)


def test_mean_interval_matches_enumeration_of_every_resample():
    draws = np.array(BASE)[every_resample(5)].mean(axis=1)
    interval = mean_interval(BASE, **HOW)
    assert interval.value == pytest.approx(sum(BASE) / 5)
    assert_interval(draws, interval)


def test_paired_difference_matches_enumeration_of_every_pair():
    index = every_resample(5)
    draws = np.array(CANDIDATE)[index].mean(axis=1) - np.array(BASE)[index].mean(axis=1)
    interval = paired_difference(BASE, CANDIDATE, **HOW)
    assert interval.value == pytest.approx(0.3)
    assert_interval(draws, interval)


@pytest.mark.parametrize("floor", [0.01, 0.3, 1.0])
def test_paired_relative_gain_matches_enumeration_of_every_pair(floor):
    index = every_resample(5)
    before, after = np.array(BASE)[index].mean(axis=1), np.array(CANDIDATE)[index].mean(axis=1)
    interval = paired_relative_gain(BASE, CANDIDATE, floor=floor, **HOW)
    assert interval.value == pytest.approx(0.3 / max(0.37, floor))
    assert_interval((after - before) / np.maximum(before, floor), interval)


def test_relative_gain_survives_resamples_in_which_the_base_scores_nothing():
    base, candidate = (1.0, 0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 1.0, 0.0)
    index = every_resample(5)
    before, after = np.array(base)[index].mean(axis=1), np.array(candidate)[index].mean(axis=1)
    assert np.mean(before == 0) == pytest.approx(0.8**5)
    interval = paired_relative_gain(base, candidate, floor=0.2, **HOW)
    assert interval.value == pytest.approx(2.0)
    assert_interval((after - before) / np.maximum(before, 0.2), interval)


def test_relative_gain_over_a_base_of_zero_is_counted_in_floors():
    interval = paired_relative_gain((0.0,) * 40, (1.0, 0.0) * 20, floor=0.05, **HOW)
    assert interval.value == pytest.approx(10.0)
    assert math.isfinite(interval.low) and math.isfinite(interval.high)
    assert paired_relative_gain((0.0,) * 40, (0.0,) * 40, floor=0.05, **HOW) == (0.0, 0.0, 0.0)


def test_relative_gain_is_the_difference_when_the_floor_is_one():
    difference = paired_difference(BASE, CANDIDATE, **HOW)
    assert paired_relative_gain(BASE, CANDIDATE, floor=1.0, **HOW) == pytest.approx(difference)


@pytest.mark.parametrize(("right", "n"), [(50, 400), (200, 400), (900, 1000)])
def test_large_samples_approach_the_normal_interval(right, n):
    scores = [1.0] * right + [0.0] * (n - right)
    value, low, high = mean_interval(scores, resamples=10_000, confidence=0.95, seed=1)
    share = right / n
    half = NormalDist().inv_cdf(0.975) * math.sqrt(share * (1 - share) / n)
    assert value == pytest.approx(share)
    assert (high - low) / 2 == pytest.approx(half, rel=0.06)
    assert (low + high) / 2 == pytest.approx(share, abs=0.1 * half)


def test_pairing_cancels_what_is_hard_for_both():
    hard = [0.1, 0.9] * 50
    better = [score + 0.05 for score in hard]
    paired = paired_difference(hard, better, **HOW)
    assert paired == pytest.approx((0.05, 0.05, 0.05))
    shuffled = paired_difference(hard, better[1:] + better[:1], **HOW)
    assert shuffled.value == pytest.approx(0.05)
    assert shuffled.high - shuffled.low > 0.1


def test_swapping_the_models_mirrors_the_difference():
    there, back = paired_difference(BASE, CANDIDATE, **HOW), paired_difference(CANDIDATE, BASE, **HOW)
    assert back == pytest.approx((-there.value, -there.high, -there.low))


@pytest.mark.parametrize("scores", [(0.0,) * 30, (1.0,) * 30, (0.1,) * 30, (0.7,)])
def test_constant_scores_give_the_point(scores):
    value, low, high = mean_interval(scores, **HOW)
    assert value == low == high == pytest.approx(scores[0])


def test_more_confidence_is_wider_and_the_seed_decides_the_draws():
    narrow = mean_interval(BASE, resamples=5000, confidence=0.6, seed=1)
    wide = mean_interval(BASE, resamples=5000, confidence=0.99, seed=1)
    assert wide.low < narrow.low < narrow.high < wide.high
    scores = tuple(np.linspace(0, 1, 37))
    assert mean_interval(scores, **HOW) == mean_interval(scores, **HOW)
    assert mean_interval(scores, **HOW) != mean_interval(scores, **{**HOW, "seed": 8})


def test_a_negative_seed_is_a_seed():
    assert mean_interval(BASE, resamples=1000, confidence=0.9, seed=-1).low < 0.37


def test_batches_do_not_change_the_interval(monkeypatch):
    whole = mean_interval(BASE, **HOW)
    monkeypatch.setattr(room, "CELLS", 1000)
    assert mean_interval(BASE, **HOW) == whole


@pytest.mark.parametrize("scores", [(), (0.1, math.nan), (0.1, math.inf)])
def test_scores_that_have_no_mean_are_refused(scores):
    with pytest.raises(ValueError):
        mean_interval(scores, **HOW)


def test_pairs_of_unequal_number_are_refused():
    for function in (paired_difference, paired_relative_gain):
        extra = {"floor": 0.1} if function is paired_relative_gain else {}
        with pytest.raises(ValueError, match="not 2 and 3"):
            function((0.0, 1.0), (0.0, 1.0, 1.0), **extra, **HOW)


@pytest.mark.parametrize("floor", [0.0, -0.1, math.nan])
def test_a_floor_that_is_none_is_refused(floor):
    with pytest.raises(ValueError, match="floor"):
        paired_relative_gain(BASE, CANDIDATE, floor=floor, **HOW)


@pytest.mark.parametrize(("fixed", "broken"), [(0, 1), (5, 0), (6, 0), (7, 2), (12, 12), (30, 11)])
def test_mcnemar_matches_the_binomial_sum(fixed, broken):
    same = (1.0, 0.0, 1.0)
    base = (0.0,) * fixed + (1.0,) * broken + same
    candidate = (1.0,) * fixed + (0.0,) * broken + same
    n, least = fixed + broken, min(fixed, broken)
    expected = min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)
    assert mcnemar(base, candidate) == pytest.approx((fixed, broken, expected))


def test_mcnemar_of_equal_answers_is_no_evidence():
    assert mcnemar((1.0, 0.0), (1.0, 0.0)) == (0, 0, 1.0)


def test_mcnemar_is_for_right_or_wrong_only():
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar((0.5, 1.0), (1.0, 1.0))


def test_detectable_difference_closed_form():
    assert detectable_difference(80) == pytest.approx((1.959964 + 0.841621) * 0.5 / math.sqrt(80), rel=1e-6)
    assert detectable_difference(320) == pytest.approx(detectable_difference(80) / 2)
    assert detectable_difference(80, spread=1.0) == pytest.approx(2 * detectable_difference(80))
    with pytest.raises(ValueError):
        detectable_difference(0)


def test_a_detectable_difference_is_detected_four_times_in_five():
    n, trials = 200, 4000
    wins, losses = 0.2, 0.05
    values = np.random.default_rng(3).choice([1.0, -1.0, 0.0], p=[wins, losses, 0.75], size=(trials, n))
    spread = pstdev([1.0] * 20 + [-1.0] * 5 + [0.0] * 75)
    shift = detectable_difference(n, spread=spread)
    # Differences centred on the claimed one: a z-test should find it in 80 % of the trials.
    samples = values - (wins - losses) + shift
    z = samples.mean(axis=1) / (samples.std(axis=1) / math.sqrt(n))
    assert np.mean(z > 1.959964) == pytest.approx(0.8, abs=0.03)


def test_importing_costs_neither_scipy_nor_torch():
    code = "import sys, core.evaluation.statistics; print({'torch', 'scipy'} & set(sys.modules))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


LOSSES, TOKENS = (0.4, 1.2, 2.0, 0.9, 0.1), (10, 2, 5, 1, 7)
LATER, COUNTS = (0.3, 1.0, 1.5, 0.95, 0.1), (10, 3, 5, 1, 7)


def perplexities(losses, tokens, index):
    losses, tokens = np.array(losses), np.array(tokens, dtype=float)
    return np.exp((losses * tokens)[index].sum(axis=1) / tokens[index].sum(axis=1))


def test_perplexity_interval_matches_enumeration_of_every_resample():
    interval = perplexity_interval(LOSSES, TOKENS, **HOW)
    total = sum(loss * count for loss, count in zip(LOSSES, TOKENS, strict=True))
    assert interval.value == pytest.approx(math.exp(total / sum(TOKENS)))
    assert_interval(perplexities(LOSSES, TOKENS, every_resample(5)), interval)


def test_equal_tokens_make_perplexity_the_exponential_of_the_mean_loss():
    value, low, high = mean_interval(LOSSES, **HOW)
    expected = (math.exp(value), math.exp(low), math.exp(high))
    assert perplexity_interval(LOSSES, (3,) * 5, **HOW) == pytest.approx(expected)


@pytest.mark.parametrize("relative", [True, False])
def test_perplexity_gain_matches_enumeration_of_every_pair(relative):
    index = every_resample(5)
    before, after = perplexities(LOSSES, TOKENS, index), perplexities(LATER, COUNTS, index)
    gains = (before - after) / before if relative else before - after
    interval = paired_perplexity_gain((LOSSES, TOKENS), (LATER, COUNTS), relative=relative, **HOW)
    assert interval.value > 0
    assert_interval(gains, interval)


def test_a_higher_perplexity_is_no_gain():
    assert paired_perplexity_gain((LATER, COUNTS), (LOSSES, TOKENS), **HOW).value < 0
    assert paired_perplexity_gain((LOSSES, TOKENS), (LOSSES, TOKENS), **HOW) == pytest.approx((0, 0, 0))


def test_examples_without_tokens_or_of_unequal_number_have_no_perplexity():
    with pytest.raises(ValueError, match="without tokens"):
        perplexity_interval((0.1, 0.2), (3, 0), **HOW)
    with pytest.raises(ValueError, match="equal number"):
        perplexity_interval((0.1, 0.2), (3,), **HOW)
    with pytest.raises(ValueError, match="equal number"):
        paired_perplexity_gain((LOSSES, TOKENS), (LATER[:4], COUNTS[:4]), **HOW)
