"""baseline-established: on this test file, on enough examples, adding up."""

import math

import pytest

from core.evaluation.reports import BaselineReport, MetricValue
from gates.baseline_established import baseline_established
from gates.thresholds import BaselineEstablished

DEFAULT = BaselineEstablished()


def failed(baseline, split, thresholds=DEFAULT):
    return {check.name for check in baseline_established(baseline, split, thresholds).failed}


def test_a_measured_base_opens_the_gate(baseline, split):
    verdict = baseline_established(baseline, split, DEFAULT)
    assert verdict.passed
    assert verdict.gate == "baseline-established"
    assert len({check.name for check in verdict.checks}) == len(verdict.checks)


def test_missing_reports_close_it(baseline, split):
    assert failed(None, None) == {"baseline report", "split report"}
    assert failed(baseline, None) == {"split report"}
    assert failed(None, split) == {"baseline report"}


def spoil(baseline, place, **update):
    """Copy a baseline with one arm changed."""
    arms = list(baseline.arms)
    arms[place] = arms[place].model_copy(update=update)
    return baseline.model_copy(update={"arms": tuple(arms)})


@pytest.mark.parametrize(
    ("least", "closed"),
    [(60, set()), (61, {f"{arm} examples of the config" for arm in ("zero_shot", "few_shot", "prompted")})],
)
def test_examples(baseline, split, least, closed):
    assert failed(baseline, split, BaselineEstablished(min_examples=least)) == closed


def test_one_arm_is_enough_and_none_is_not(arms, split):
    assert failed(arms(prompted=(0.0,) * 60), split) == set()
    assert failed(BaselineReport(arms=()), split) == {"baseline arms"}


def test_a_base_that_knows_nothing_is_still_a_baseline(arms, split):
    assert failed(arms(zero_shot=(0.0,) * 60), split) == set()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_measurement_on_an_older_test_file_closes_it(baseline, split, place):
    arm = baseline.arms[place].arm
    assert f"{arm} test file" in failed(spoil(baseline, place, split_digest=split.digests["val"]), split)
    assert {f"{each.arm} test file" for each in baseline.arms} == failed(
        baseline, split.model_copy(update={"digests": {}})
    )


def test_more_examples_than_test_rows_close_it(baseline, split):
    closed = failed(baseline, split.model_copy(update={"test": 59}))
    assert closed == {f"{arm.arm} examples within the test split" for arm in baseline.arms}


def test_a_model_or_prompts_without_a_digest_close_it(arms, split):
    alone = arms(zero_shot=(1.0,) * 60)
    assert failed(spoil(alone, 0, model_digest=""), split) == {"zero_shot model known"}
    blank = alone.arms[0].decoding.model_copy(update={"prompt_digest": " "})
    assert failed(spoil(alone, 0, decoding=blank), split) == {"zero_shot prompts known"}


def test_a_value_that_its_examples_do_not_support_closes_it_in_any_arm(baseline, split):
    for place, arm in enumerate(baseline.arms):
        assert failed(spoil(baseline, place, value=0.1), split) == {
            f"{arm.arm} value",
            f"{arm.arm} metrics entry",
        }


@pytest.mark.parametrize(
    ("update", "name"),
    [
        ({"model_digest": "sha256:other"}, "model"),
        ({"metric": "token_f1"}, "metric"),
        ({"ids": tuple(f"other-{place}" for place in range(60))}, "same examples in order"),
        ({"n": 59}, "number of examples"),
        ({"confidence": 0.9}, "interval confidence"),
    ],
)
def test_arms_of_different_questions_or_models_close_it(baseline, split, update, name):
    assert f"few_shot and zero_shot, {name}" in failed(spoil(baseline, 1, **update), split)


def test_an_arm_measured_twice_or_by_an_unknown_name_closes_it(arms, baseline, split, tuned):
    twice = baseline.model_copy(update={"arms": (*baseline.arms, baseline.arms[0])})
    assert "baseline distinct arms" in failed(twice, split)
    assert "baseline arms known" in failed(baseline.model_copy(update={"arms": (tuned,)}), split)


def perplexities(losses, tokens):
    mean = sum(a * b for a, b in zip(losses, tokens, strict=True)) / sum(tokens)
    return {
        "metric": "perplexity",
        "value": math.exp(mean),
        "metrics": {"perplexity": MetricValue(value=math.exp(mean), low=1.0, high=9.0, n=60)},
        "scores": {"perplexity": losses},
        "weights": {"perplexity": tokens},
    }


def test_a_perplexity_adds_up_over_its_tokens_and_may_exceed_one(arms, split):
    losses, tokens = (2.0, 0.5) * 30, (3.0, 9.0) * 30
    base = spoil(arms(zero_shot=(0.0,) * 60), 0, **perplexities(losses, tokens))
    assert failed(base, split) == set()
    unweighted = math.exp(1.25)
    lie = spoil(base, 0, value=unweighted)
    assert failed(lie, split) == {"zero_shot value", "zero_shot metrics entry"}


@pytest.mark.parametrize(
    ("weights", "closed"),
    [
        ({}, {"zero_shot token counts", "zero_shot fewest tokens", "zero_shot value"}),
        ({"perplexity": (1.0,) * 59}, {"zero_shot token counts", "zero_shot value"}),
        ({"perplexity": (-1.0,) + (2.0,) * 59}, {"zero_shot fewest tokens", "zero_shot value"}),
        ({"perplexity": (0.0,) * 60}, {"zero_shot fewest tokens", "zero_shot value"}),
    ],
)
def test_a_perplexity_without_its_token_counts_closes_it(arms, split, weights, closed):
    base = spoil(arms(zero_shot=(0.0,) * 60), 0, **perplexities((2.0, 0.5) * 30, (3.0, 9.0) * 30))
    assert failed(spoil(base, 0, weights=weights), split) == closed


@pytest.mark.parametrize(
    ("compare_to", "closed"),
    [
        ("best", set()),
        ("zero_shot", set()),
        ("few_shot", {"baseline arm to beat"}),
        ("prompted", {"baseline arm to beat"}),
    ],
)
def test_an_arm_to_beat_that_was_left_out_closes_it_before_training(arms, split, compare_to, closed):
    verdict = baseline_established(arms(zero_shot=(0.0,) * 60), split, DEFAULT, compare_to)
    assert {check.name for check in verdict.failed} == closed
