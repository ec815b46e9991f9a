"""What several tries are worth, against enumeration of every choice and every outcome."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.evaluation.attempts import (
    collapse_point,
    efficiency_ratio,
    independent_pass_at_k,
    no_collapse,
    pass_at_k,
    tries,
    tries_efficiency,
    usq_at_k,
)

scores_of = st.lists(st.floats(0, 1), min_size=1, max_size=8)
rights = st.lists(st.integers(0, 6), min_size=1, max_size=9)
"""Right answers among six, for each of some questions."""


def test_pass_at_k_by_the_formula():
    assert pass_at_k(10, 3, 5) == pytest.approx(0.9167, abs=5e-5)
    assert (pass_at_k(5, 0, 5), pass_at_k(5, 1, 5), pass_at_k(5, 5, 1)) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize(("n", "right", "k"), [(6, 2, 1), (6, 2, 3), (7, 3, 5), (4, 4, 2)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(n, right, k):
    draws = list(itertools.combinations(range(n), k))
    assert pass_at_k(n, right, k) == pytest.approx(sum(min(d) < right for d in draws) / len(draws))


@pytest.mark.parametrize(("n", "right", "k"), [(5, 6, 1), (5, -1, 1), (5, 2, 6), (5, 2, 0)])
def test_pass_at_k_that_makes_no_sense_raises(n, right, k):
    with pytest.raises(ValueError, match="undefined"):
        pass_at_k(n, right, k)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.66, 1.0])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_expects_what_independent_tries_give_at_any_rate(rate: float, k: int):
    n = 5
    chances = [math.comb(n, c) * rate**c * (1 - rate) ** (n - c) for c in range(n + 1)]
    expected = sum(chance * pass_at_k(n, c, k) for c, chance in enumerate(chances))
    assert expected == pytest.approx(independent_pass_at_k(rate, k))


@given(scores_of)
def test_usq_is_the_mean_of_the_best_over_every_choice(scores: list[float]):
    for k in range(1, len(scores) + 1):
        best = [max(choice) for choice in itertools.combinations(scores, k)]
        assert usq_at_k(scores, k) == pytest.approx(sum(best) / len(best))


@given(scores_of)
def test_usq_grows_from_the_mean_to_the_best(scores: list[float]):
    values = [usq_at_k(scores, k) for k in range(1, len(scores) + 1)]
    assert values[0] == pytest.approx(sum(scores) / len(scores))
    assert values[-1] == pytest.approx(max(scores))
    assert all(after >= before - 1e-12 for before, after in itertools.pairwise(values))


@pytest.mark.parametrize("right", range(7))
def test_usq_of_right_and_wrong_is_pass_at_k(right: int):
    scores = [0.0] * (6 - right) + [1.0] * right
    for k in range(1, 7):
        assert usq_at_k(scores[::-1], k) == pytest.approx(pass_at_k(6, right, k))


def test_usq_does_not_depend_on_the_order_and_one_best_answer_is_found_in_k_of_n():
    assert (
        usq_at_k([0.9, 0.1, 0.4], 2) == usq_at_k([0.1, 0.4, 0.9], 2) == pytest.approx((0.4 + 0.9 + 0.9) / 3)
    )
    assert usq_at_k([0.0] * 9 + [1.0], 4) == pytest.approx(4 / 10)


@pytest.mark.parametrize("k", [0, 3])
def test_usq_of_more_answers_than_there_are_raises(k: int):
    with pytest.raises(ValueError, match=f"USQ@{k} is undefined for 2"):
        usq_at_k([0.5, 1.0], k)


def test_the_ratio_of_independent_and_of_equal_tries():
    assert efficiency_ratio(independent_pass_at_k(0.66, 10), 0.66, 10) == pytest.approx(0.152, abs=5e-4)
    assert efficiency_ratio(0.66, 0.66, 10) == pytest.approx(0.1)
    assert efficiency_ratio(0.0, 0.0, 10) is None
    # No k from 6 on lets a model of this rate reach 0.3, whatever it does.
    assert all(efficiency_ratio(1.0, 0.66, k) < 0.3 for k in range(6, 65))


@given(st.floats(0.01, 0.99), st.integers(2, 64), st.floats(0, 1))
def test_efficiency_is_the_place_of_the_ratio_between_its_references(first: float, k: int, where: float):
    independent = independent_pass_at_k(first, k)
    passed = first + where * (independent - first)
    if independent - first < 1e-9:
        return
    low, high = 1 / k, efficiency_ratio(independent, first, k)
    ratio = efficiency_ratio(passed, first, k)
    assert tries_efficiency(passed, first, k) == pytest.approx((ratio - low) / (high - low), abs=1e-5)


@given(rights, st.integers(2, 6))
def test_efficiency_is_zero_only_if_every_question_is_always_or_never_right(counts: list[int], k: int):
    n, first = 6, sum(counts) / len(counts) / 6
    passed = sum(pass_at_k(n, c, k) for c in counts) / len(counts)
    found = tries_efficiency(passed, first, k)
    if found is None:
        assert first in (0, 1)
        return
    if set(counts) <= {0, n}:
        assert found == pytest.approx(0, abs=1e-9)
    else:
        assert found > 1e-3


def test_in_expectation_uneven_questions_are_below_independent_tries_and_even_ones_reach_them():
    def expected(rates: list[float], k: int) -> float:
        first = sum(rates) / len(rates)
        return tries_efficiency(sum(independent_pass_at_k(p, k) for p in rates) / len(rates), first, k)

    assert expected([0.5, 0.5], 5) == pytest.approx(1)
    assert 0 < expected([0.2, 0.8], 5) < expected([0.4, 0.6], 5) < 1
    assert expected([0.0, 1.0], 5) == pytest.approx(0)


@pytest.mark.parametrize(("first", "k"), [(0.0, 5), (1.0, 5), (0.4, 1)])
def test_there_is_no_efficiency_where_both_references_are_one(first: float, k: int):
    assert tries_efficiency(independent_pass_at_k(first, k), first, k) is None


@pytest.mark.parametrize(
    ("passed", "point"),
    [
        ([0.5, 0.6, 0.605, 0.606], 2),
        ([0.5, 0.5], 1),
        ([1.0, 1.0, 1.0], 1),
        ([0.0, 0.0, 0.0], None),
        ([0.0], None),
        ([0.2, 0.4, 0.6], None),
        ([0.5], None),
        ([0.5, 0.51, 0.52], None),
        ([0.5, 0.509, 0.6], 1),
    ],
)
def test_the_collapse_point_is_where_one_more_adds_too_little(passed: list[float], point: int | None):
    assert collapse_point(passed, 0.01) == point


@pytest.mark.parametrize(
    ("passed", "why"),
    [
        ([0.0, 0.0, 0.0], "no answer was right"),
        ([0.5], "there is one try, and no further one"),
        ([0.0], "there is one try, and no further one"),
        ([0.2, 0.4, 0.6], "every one of 3 tries adds more"),
    ],
)
def test_why_tries_have_no_collapse_point(passed: list[float], why: str):
    assert no_collapse(passed) == why


@given(rights)
def test_further_tries_add_ever_less_so_that_what_has_collapsed_stays_so(counts: list[int]):
    passed = [sum(pass_at_k(6, c, k) for c in counts) / len(counts) for k in range(1, 7)]
    gains = [after - before for before, after in itertools.pairwise(passed)]
    assert all(0 - 1e-12 <= later <= earlier + 1e-12 for earlier, later in itertools.pairwise(gains))
    point = collapse_point(passed, 0.05)
    if point is not None:
        assert all(gain < 0.05 for gain in gains[point - 1 :])


def test_the_layout_of_tries_says_why_something_is_missing():
    one, two = tries([0.5, 0.7], [0.6, 0.8])
    assert (one.k, one.pass_at, one.usq_at, one.der, one.der_identical) == (1, 0.5, 0.6, 1.0, 1.0)
    assert one.efficiency is None and set(one.absent) == {"efficiency"}
    assert (two.der, two.der_independent, two.der_identical) == pytest.approx((0.7, 0.75, 0.5))
    assert two.efficiency == pytest.approx(0.2 / 0.25) and two.absent == {}
    wrong = tries([0.0, 0.0], [0.1, 0.2])[1]
    assert (wrong.der, wrong.der_independent, wrong.efficiency, wrong.der_identical) == (
        None,
        None,
        None,
        0.5,
    )
    assert set(wrong.absent) == {"der", "der_independent", "efficiency"}
