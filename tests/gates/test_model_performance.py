"""model-performance: the gain, its interval, the convergence, and whose numbers they are."""

import math

import numpy as np
import pytest

from core.evaluation.reports import BaselineReport, MetricValue, Suite
from core.evaluation.statistics import paired_difference, paired_relative_gain
from core.training.reports import EvalLoss
from gates.model_performance import compared_arm, model_performance
from gates.thresholds import MetricLimit, ModelPerformance

DEFAULT = ModelPerformance()
POINT_ONLY = {"require_interval": False}


def failed(baseline, tuned, training, thresholds=DEFAULT):
    return {check.name for check in model_performance(baseline, tuned, training, thresholds).failed}


def right(count, n=60):
    return (1.0,) * count + (0.0,) * (n - count)


def test_a_better_model_opens_the_gate(baseline, tuned, training):
    verdict = model_performance(baseline, tuned, training, DEFAULT)
    assert verdict.passed
    assert verdict.gate == "model-performance"
    assert len({check.name for check in verdict.checks}) == len(verdict.checks)


def test_missing_reports_close_it(baseline, tuned, training):
    assert failed(None, None, None) == {"baseline report", "tuned report", "training report"}
    assert failed(None, tuned, training) == {"baseline report"}
    assert failed(baseline, None, training) == {"tuned report"}
    assert failed(baseline, tuned, None) == {"training report"}


@pytest.mark.parametrize(
    ("mode", "before", "after", "wanted", "closed"),
    [
        ("relative", 30, 36, 0.2, False),
        ("relative", 30, 35, 0.2, True),
        ("relative", 12, 48, 3.0, False),
        ("relative", 12, 48, 3.001, True),
        ("relative", 10, 60, 5, False),
        ("relative", 10, 59, 5, True),
        ("relative", 20, 20, 0, False),
        ("relative", 20, 19, 0, True),
        ("absolute", 30, 42, 0.2, False),
        ("absolute", 30, 41, 0.2, True),
        ("absolute", 20, 20, 0, False),
        ("absolute", 20, 19, 0, True),
        ("absolute", 0, 60, 5, True),
    ],
)
def test_gain_from_both_sides(arms, scored, training, mode, before, after, wanted, closed):
    thresholds = ModelPerformance(mode=mode, min_improvement=wanted, **POINT_ONLY)
    base, now = arms(zero_shot=right(before)), scored("tuned", right(after), "merged")
    assert failed(base, now, training, thresholds) == ({"gain"} if closed else set())


@pytest.mark.parametrize("mode", ["relative", "absolute"])
def test_the_lower_end_of_the_interval_from_both_sides(arms, scored, training, mode):
    base, now = (
        arms(zero_shot=right(20)),
        scored("tuned", right(16, 16) + right(14, 44), "merged"),
    )
    how = {"resamples": 2000, "confidence": 0.95, "seed": 3407}
    scores = base.arms[0].scores["exact_match"], now.scores["exact_match"]
    ends = (
        paired_difference(*scores, **how)
        if mode == "absolute"
        else paired_relative_gain(*scores, floor=0.05, **how)
    )
    assert 0 < ends.low < ends.value
    reached = ModelPerformance(mode=mode, min_improvement=ends.low)
    assert failed(base, now, training, reached) == set()
    missed = ModelPerformance(mode=mode, min_improvement=ends.low + 1e-6)
    assert failed(base, now, training, missed) == {"gain, lower end"}
    without = ModelPerformance(mode=mode, min_improvement=ends.value, **POINT_ONLY)
    assert failed(base, now, training, without) == set()


def test_a_gain_of_a_few_lucky_examples_closes_it_and_says_what_could_be_seen(arms, scored, training):
    base, now = arms(zero_shot=right(10)), scored("tuned", right(13), "merged")
    verdict = model_performance(base, now, training, DEFAULT)
    assert {check.name for check in verdict.failed} == {"gain, lower end"}
    details = {check.name: check.detail for check in verdict.checks}
    assert "3 fixed, 0 broken, McNemar p = 0.25" in details["gain"]
    # (1.960 + 0.842) * sqrt(0.05 * 0.95) / sqrt(60) = 0.0788
    assert "60 examples could not have detected less than 7.9 points" in details["gain, lower end"]


def test_the_mode_is_never_guessed(arms, scored, training):
    base, now = arms(zero_shot=right(12)), scored("tuned", right(18), "merged")
    wanted = {"min_improvement": 0.3, **POINT_ONLY}
    assert model_performance(base, now, training, ModelPerformance(mode="relative", **wanted)).passed
    verdict = model_performance(base, now, training, ModelPerformance(mode="absolute", **wanted))
    assert verdict.summary == "model-performance: gain 0.100 against 0.300"


@pytest.mark.parametrize(
    ("before", "after", "closed"),
    [
        (0, 0, {"gain", "tuned score"}),
        (0, 2, {"tuned score"}),
        (0, 3, set()),
        (1, 2, {"tuned score"}),
        (1, 3, set()),
    ],
)
def test_a_base_near_zero_counts_as_the_floor(arms, scored, training, before, after, closed):
    base, now = arms(zero_shot=right(before)), scored("tuned", right(after), "merged")
    assert failed(base, now, training, ModelPerformance(**POINT_ONLY)) == closed


def test_a_tiny_base_does_not_explode(arms, scored, training):
    base, now = arms(zero_shot=right(1, 1000)), scored("tuned", right(50, 1000), "merged")
    verdict = model_performance(base, now, training, DEFAULT)
    gain = next(check for check in verdict.checks if check.name == "gain")
    assert gain.observed == pytest.approx((0.05 - 0.001) / 0.05)


def test_a_model_that_scores_nothing_closes_it_in_both_modes(arms, scored, training):
    base, now = arms(zero_shot=right(0)), scored("tuned", right(0), "merged")
    for mode in ("relative", "absolute"):
        thresholds = ModelPerformance(mode=mode, min_improvement=0)
        assert failed(base, now, training, thresholds) == {"tuned score"}


def test_a_threshold_out_of_reach_is_pointed_out(arms, scored, training):
    base, now = arms(zero_shot=right(54)), scored("tuned", right(60), "merged")
    verdict = model_performance(base, now, training, DEFAULT)
    assert (
        "even a perfect score would gain only 0.111"
        in next(c for c in verdict.failed if c.name == "gain").detail
    )


def test_partial_scores_are_paired_without_mcnemar(arms, scored, training):
    base = arms(zero_shot=(0.1, 0.25, 0.3) * 20)
    now = scored("tuned", (0.6, 0.75, 0.8) * 20, "merged")
    verdict = model_performance(base, now, training, DEFAULT)
    assert verdict.passed
    assert not any("McNemar" in check.detail for check in verdict.checks)


@pytest.mark.parametrize(
    ("final", "closed"), [(2.4999, set()), (2.5, {"final training loss"}), (3.0, {"final training loss"})]
)
def test_training_loss_must_fall(baseline, tuned, training, final, closed):
    assert failed(baseline, tuned, training.model_copy(update={"final_loss": final})) == closed


@pytest.mark.parametrize(
    ("losses", "closed"),
    [
        ((1.0, 0.8, 0.88), False),
        ((1.0, 0.8, 0.881), True),
        ((1.0,), False),
        ((0.001, 0.011), False),
        ((0.001, 0.0111), True),
        ((), True),
    ],
)
def test_validation_loss_may_rise_by_a_tenth(baseline, tuned, training, losses, closed):
    points = tuple(EvalLoss(step=10 * place, loss=loss) for place, loss in enumerate(losses))
    report = training.model_copy(update={"eval_losses": points, "merged_eval_loss": (losses or (0,))[-1]})
    assert failed(baseline, tuned, report) == ({"validation loss rise"} if closed else set())


def test_the_last_validation_loss_is_the_one_of_the_last_step(baseline, tuned, training):
    points = (EvalLoss(step=20, loss=2.0), EvalLoss(step=10, loss=1.0))
    assert failed(baseline, tuned, training.model_copy(update={"eval_losses": points})) == {
        "validation loss rise"
    }


@pytest.mark.parametrize(
    ("update", "closed"),
    [
        ({"steps": 179}, {"training steps of the plan"}),
        ({"steps": 181}, {"training steps of the plan"}),
        ({"steps": 0, "total_steps": 0}, {"training steps"}),
        ({"error": "loss became nan at step 90"}, {"training ended without error"}),
        ({"error": ""}, {"training ended without error"}),
    ],
)
def test_training_must_end_as_planned(baseline, tuned, training, update, closed):
    assert failed(baseline, tuned, training.model_copy(update=update)) == closed


STALE = {
    "test file": {"split_digest": "sha256:older"},
    "examples": {"ids": tuple(f"other-{place}" for place in range(60))},
    "model": {"model_digest": "sha256:older"},
    "confidence": {"confidence": 0.6},
}


@pytest.fixture
def alone(arms):
    """A base that was asked in one way."""
    return arms(zero_shot=right(12))


@pytest.mark.parametrize(
    ("stale", "closed"),
    [
        ("test file", {"tuned and zero_shot, test file", "gain, lower end"}),
        ("examples", {"tuned and zero_shot, same examples in order", "gain, lower end"}),
        ("model", {"tuned model"}),
        ("confidence", {"tuned and zero_shot, interval confidence", "gain, lower end"}),
    ],
)
def test_a_stale_evaluation_closes_it(alone, tuned, training, stale, closed):
    assert failed(alone, tuned.model_copy(update=STALE[stale]), training) == closed


@pytest.mark.parametrize("key", ["strategy", "max_new_tokens", "prompt_digest"])
def test_other_decoding_closes_it(alone, tuned, training, key):
    value = 65 if key == "max_new_tokens" else "other"
    other = tuned.model_copy(update={"decoding": tuned.decoding.model_copy(update={key: value})})
    names = {"strategy": "decoding strategy", "prompt_digest": "prompts"}
    assert failed(alone, other, training) == {
        f"tuned and zero_shot, {names.get(key, key)}",
        "gain, lower end",
    }


def test_another_metric_closes_it(alone, scored, training):
    other = scored("tuned", right(48), "merged")
    other = other.model_copy(
        update={"metric": "f", "metrics": {"f": other.metrics["exact_match"]}, "scores": {"f": right(48)}}
    )
    assert failed(alone, other, training) == {"tuned and zero_shot, metric", "gain, lower end"}


def test_the_base_itself_is_not_a_tuned_model(baseline, tuned, training):
    same = tuned.model_copy(update={"model_digest": baseline.arms[0].model_digest})
    assert {"tuned model", "tuned model is not the base", "tuned and zero_shot, models"} <= failed(
        baseline, same, training
    )


@pytest.mark.parametrize(
    ("update", "closed"),
    [
        ({"base_digest": "sha256:other"}, {"baseline model"}),
        ({"merged_digest": "sha256:other"}, {"tuned model"}),
        ({"train_digest": ""}, {"training data known", "training data is not the test file"}),
    ],
)
def test_training_of_other_files_closes_it(baseline, tuned, training, update, closed):
    assert failed(baseline, tuned, training.model_copy(update=update)) == closed


def test_training_on_the_test_file_closes_it(baseline, tuned, training):
    cheat = training.model_copy(update={"train_digest": tuned.split_digest})
    assert failed(baseline, tuned, cheat) == {"training data is not the test file"}


def test_a_value_raised_by_hand_closes_it(baseline, scored, training):
    honest = scored("tuned", right(13), "merged")
    raised = honest.model_copy(update={"value": 0.9})
    assert "tuned value" in failed(baseline, raised, training)


# The arm to beat


@pytest.mark.parametrize(
    ("compare_to", "closed"),
    [
        ("best", {"gain", "gain, lower end"}),
        ("prompted", {"gain", "gain, lower end"}),
        ("zero_shot", set()),
        ("few_shot", set()),
    ],
)
def test_a_gain_over_a_badly_asked_base_is_none(arms, tuned, training, compare_to, closed):
    # 48 of 60 beat 6 and 12 by far, and 45 by less than a fifth.
    base = arms(zero_shot=right(6), few_shot=right(12), prompted=right(45))
    assert failed(base, tuned, training, ModelPerformance(compare_to=compare_to)) == closed


def test_the_best_arm_is_the_one_to_beat_and_the_first_of_equals(arms):
    base = arms(zero_shot=right(12), few_shot=right(20), prompted=right(20))
    assert compared_arm(base, "best").arm == "few_shot"
    assert compared_arm(base, "prompted").arm == "prompted"
    assert compared_arm(BaselineReport(arms=()), "best") is None


def test_the_arm_to_beat_is_named_with_all_the_others(arms, tuned, training):
    base = arms(zero_shot=right(6), prompted=right(12))
    check = next(
        c for c in model_performance(base, tuned, training, DEFAULT).checks if c.name == "arm to beat"
    )
    assert (check.observed, check.detail) == ("prompted", "zero_shot 0.100, prompted 0.200")


@pytest.mark.parametrize("wanted", ["few_shot", "prompted"])
def test_an_arm_that_was_not_measured_closes_it_and_says_so(alone, tuned, training, wanted):
    verdict = model_performance(alone, tuned, training, ModelPerformance(compare_to=wanted))
    assert verdict.summary == f"model-performance: arm to beat not measured against {wanted}"
    assert verdict.failed[0].detail == "the base was asked: zero_shot 0.200"


def test_no_arm_at_all_closes_it(tuned, training):
    assert failed(BaselineReport(arms=()), tuned, training) == {"arm to beat", "baseline arms"}


def test_an_arm_of_other_questions_closes_it_even_if_another_one_is_compared(arms, tuned, training):
    base = arms(zero_shot=right(12), prompted=right(12))
    strange = base.arms[1].model_copy(update={"split_digest": "sha256:older"})
    base = base.model_copy(update={"arms": (base.arms[0], strange)})
    assert failed(base, tuned, training, ModelPerformance(compare_to="zero_shot")) == {
        "tuned and prompted, test file",
        "gain, lower end",
    }


def test_a_dishonest_arm_closes_it_even_if_another_one_is_compared(arms, tuned, training):
    base = arms(zero_shot=right(12), prompted=right(50))
    hidden = base.arms[1].model_copy(update={"value": 0.01})
    base = base.model_copy(update={"arms": (base.arms[0], hidden)})
    assert "prompted value" in failed(base, tuned, training)


def test_only_zero_shot_is_asked_in_the_same_words(arms, tuned, training):
    base = arms(zero_shot=right(12), prompted=right(12))
    same = base.arms[1].model_copy(update={"decoding": tuned.decoding})
    assert failed(base.model_copy(update={"arms": (base.arms[0], same)}), tuned, training) == {
        "tuned and prompted, prompts",
        "gain, lower end",
    }


# Metrics of which less is better


def perplexity(report, losses, tokens=(4.0, 8.0) * 30):
    mean = sum(a * b for a, b in zip(losses, tokens, strict=True)) / sum(tokens)
    value = math.exp(mean)
    return report.model_copy(
        update={
            "metric": "perplexity",
            "value": value,
            "metrics": {"perplexity": MetricValue(value=value, low=value, high=value, n=60)},
            "scores": {"perplexity": losses},
            "weights": {"perplexity": tokens},
        }
    )


@pytest.fixture
def surprised(arms, tuned):
    """Base arms of perplexity e^2 and e^1.8, and a tuned model of e^(1.8 + change)."""

    def build(change: float):
        base = arms(zero_shot=right(0), prompted=right(0))
        worse, best = (perplexity(arm, (loss,) * 60) for arm, loss in zip(base.arms, (2, 1.8), strict=True))
        return base.model_copy(update={"arms": (worse, best)}), perplexity(tuned, (1.8 + change,) * 60)

    return build


@pytest.mark.parametrize(
    ("mode", "wanted", "change", "closed"),
    [
        ("relative", 0.2, math.log(0.8), False),
        ("relative", 0.2, math.log(0.801), True),
        ("relative", 0.0, 0.0, False),
        ("relative", 0.0, 0.001, True),
        ("absolute", 1.0, math.log(1 - 1 / math.exp(1.8)), False),
        ("absolute", 1.001, math.log(1 - 1 / math.exp(1.8)), True),
    ],
)
def test_a_lower_perplexity_is_a_gain_over_the_lowest_arm(surprised, training, mode, wanted, change, closed):
    base, now = surprised(change)
    thresholds = ModelPerformance(mode=mode, min_improvement=wanted)
    assert failed(base, now, training, thresholds) == ({"gain", "gain, lower end"} if closed else set())
    assert compared_arm(base, "best").arm == "prompted"


def test_the_interval_of_a_perplexity_weighs_long_answers_more(arms, tuned, training):
    random = np.random.default_rng(1)
    before, now = random.uniform(1, 3, 60), random.uniform(0.5, 2.5, 60)
    tokens = random.integers(1, 40, 60).astype(float)
    base = arms(zero_shot=right(0))
    base = base.model_copy(update={"arms": (perplexity(base.arms[0], tuple(before), tuple(tokens)),)})
    after = perplexity(tuned, tuple(now), tuple(tokens))
    verdict = model_performance(base, after, training, ModelPerformance(min_improvement=0))
    chosen = np.random.default_rng(2).integers(0, 60, (20_000, 60))
    weights = tokens[chosen]
    means = [(x[chosen] * weights).sum(1) / weights.sum(1) for x in (before, now)]
    low = np.quantile(1 - np.exp(means[1] - means[0]), 0.025)
    checks = {check.name: check for check in verdict.checks}
    exact = 1 - math.exp(((now - before) * tokens).sum() / tokens.sum())
    assert checks["gain"].observed == pytest.approx(exact)
    assert checks["gain, lower end"].observed == pytest.approx(low, abs=0.02)


# How large the change is, in other terms


def test_the_gate_tells_odds_and_effect_size(arms, scored, training):
    base = arms(zero_shot=right(10) + right(0, 0))
    now = scored("tuned", (0.0, 0.0, *right(30, 58)), "merged")
    detail = next(
        c.detail for c in model_performance(base, now, training, DEFAULT).checks if c.name == "gain"
    )
    changes = np.array(now.scores["exact_match"]) - np.array(base.arms[0].scores["exact_match"])
    effect = changes.mean() / changes.std(ddof=1)
    assert "22 fixed, 2 broken" in detail
    assert "odds ratio 11;" in detail
    assert f"Cohen's d {effect:.2f}" in detail


# Demands on other metrics


def with_metric(report, name, values, **weights):
    value = sum(values) / len(values)
    if name == "perplexity":
        value = math.exp(value)
        weights = {"weights": {name: (1.0,) * len(values)}}
    entry = MetricValue(value=value, low=value, high=value, n=len(values))
    return report.model_copy(
        update={
            "metrics": report.metrics | {name: entry},
            "scores": report.scores | {name: values},
            **weights,
        }
    )


@pytest.fixture
def measured(alone, tuned):
    """Base with perplexity 10 and token F1 0.5, tuned model with 8.5 and 0.75."""
    base = with_metric(alone.arms[0], "perplexity", (math.log(10),) * 60)
    base = with_metric(base, "token_f1", (0.5,) * 60)
    now = with_metric(tuned, "perplexity", (math.log(8.5),) * 60)
    return alone.model_copy(update={"arms": (base,)}), with_metric(now, "token_f1", (0.75,) * 60)


@pytest.mark.parametrize(
    ("metric", "demand", "closed"),
    [
        ("perplexity", {"max_ratio": 0.85}, False),
        ("perplexity", {"max_ratio": 0.849}, True),
        ("perplexity", {"max": 8.5}, False),
        ("perplexity", {"max": 8.49}, True),
        ("perplexity", {"min_gain": 1.5}, False),
        ("perplexity", {"min_gain": 1.51}, True),
        ("token_f1", {"min": 0.75}, False),
        ("token_f1", {"min": 0.751}, True),
        ("token_f1", {"min_gain": 0.25}, False),
        ("token_f1", {"min_gain": 0.251}, True),
        ("token_f1", {"max_ratio": 1.5}, False),
        ("token_f1", {"max_ratio": 1.49}, True),
        ("exact_match", {"min": 0.8}, False),
    ],
)
def test_demands_on_other_metrics_from_both_sides(measured, training, metric, demand, closed):
    thresholds = ModelPerformance(require={metric: MetricLimit(**demand)})
    [limit] = demand
    assert failed(*measured, training, thresholds) == ({f"{metric} {limit}"} if closed else set())


def test_a_demand_on_a_metric_that_nobody_computed_closes_it(measured, training):
    base, now = measured
    demand = MetricLimit(min=0.0, max=9.0, min_gain=0.0, max_ratio=9.0)
    closed = failed(base, now, training, ModelPerformance(require={"chrf": demand}))
    assert {"chrf measured", "chrf min", "chrf max", "chrf min_gain", "chrf max_ratio"} <= closed
    least = ModelPerformance(require={"chrf": MetricLimit(min=0.0)})
    assert failed(base, now, training, least) == {"chrf measured", "chrf min"}


def test_a_demand_on_a_metric_that_only_the_tuned_model_has_closes_it(alone, measured, training):
    demand = ModelPerformance(require={"perplexity": MetricLimit(max_ratio=0.85)})
    assert "perplexity max_ratio" in failed(alone, measured[1], training, demand)


def test_a_demanded_value_must_follow_from_its_examples(measured, training):
    base, now = measured
    raised = now.model_copy(
        update={"metrics": now.metrics | {"token_f1": MetricValue(value=0.9, low=0.9, high=0.9, n=60)}}
    )
    demand = ModelPerformance(require={"token_f1": MetricLimit(min=0.8)})
    assert failed(base, raised, training, demand) == {"tuned token_f1 value"}


# Training that ended early


@pytest.mark.parametrize(
    ("steps", "early", "closed"),
    [(180, False, False), (120, False, True), (120, True, False), (180, True, False), (181, True, True)],
)
def test_training_that_ended_early_is_training_that_ended(baseline, tuned, training, steps, early, closed):
    report = training.model_copy(update={"steps": steps, "stopped_early": early})
    assert failed(baseline, tuned, report) == ({"training steps of the plan"} if closed else set())


@pytest.mark.parametrize(
    ("kept", "closed"),
    [(None, True), (60, False), (120, False), (180, True), (90, True)],
)
def test_the_adapter_that_was_kept_is_judged(baseline, tuned, training, kept, closed):
    points = tuple(EvalLoss(step=s, loss=loss) for s, loss in ((60, 0.8), (120, 0.88), (180, 1.2)))
    fields = {"eval_losses": points, "kept_step": kept, "merged_eval_loss": 0.8}
    report = training.model_copy(update=fields)
    assert failed(baseline, tuned, report) == ({"validation loss rise"} if closed else set())


@pytest.mark.parametrize(
    ("merged", "closed"),
    [(0.5, False), (0.8, False), (0.879, False), (0.881, True), (9.0, True), (None, True)],
)
def test_a_merged_model_must_have_learnt_what_the_adapter_had(baseline, tuned, training, merged, closed):
    report = training.model_copy(update={"kept_step": 120, "merged_eval_loss": merged})
    assert failed(baseline, tuned, report) == ({"merged validation loss rise"} if closed else set())


# What it forgot


def knowing(right_ones, name="general", **changes):
    value = sum(right_ones) / len(right_ones)
    fields = {"name": name, "metric": "accuracy", "value": value, "low": value, "high": value,
              "n": len(right_ones), "digest": "sha256:general", "scores": right_ones} | changes  # fmt: skip
    return Suite(**fields)


@pytest.fixture
def knows(arms, tuned):
    """Base and tuned model with what each scored on everyday knowledge."""

    def build(before, after):
        base = arms(few_shot=right(12), zero_shot=right(12))
        # On whichever arm it was asked.
        asked = base.arms[1].model_copy(update={"suites": before})
        return base.model_copy(update={"arms": (base.arms[0], asked)}), tuned.model_copy(
            update={"suites": after}
        )

    return build


@pytest.mark.parametrize(
    ("after", "most", "closed"),
    [
        (right(90, 100), 0.1, False),
        (right(80, 100), 0.1, False),
        (right(79, 100), 0.1, True),
        (right(79, 100), 0.11, False),
        (right(10, 100), 1.0, False),
        (right(100, 100), 0.0, False),
    ],
)
def test_a_fall_of_everyday_knowledge_from_both_sides(knows, training, after, most, closed):
    base, now = knows((knowing(right(90, 100)),), (knowing(after),))
    thresholds = ModelPerformance(max_forgetting=most)
    assert failed(base, now, training, thresholds) == (
        {"general accuracy fall beyond chance"} if closed else set()
    )


def test_a_fall_that_chance_explains_is_none(knows, training):
    before, after = right(5, 10), right(3, 10)
    scrambled = after[4:] + after[:4]
    base, now = knows((knowing(before),), (knowing(scrambled),))
    verdict = model_performance(base, now, training, DEFAULT)
    check = next(c for c in verdict.checks if c.name == "general accuracy fall beyond chance")
    assert verdict.passed and check.observed == 0
    assert "0.500 to 0.300 on 10 questions" in check.detail and "chance" in check.detail


def test_without_scores_only_intervals_that_lie_apart_count(knows, training):
    wide = {"scores": (), "low": 0.5, "high": 1.0}
    near = {"scores": (), "low": 0.1, "high": 0.6}
    apart = {"scores": (), "low": 0.1, "high": 0.4}
    before = knowing(right(80, 100), "arc", **wide)
    for ends, closed in ((near, set()), (apart, {"arc accuracy fall beyond chance"})):
        base, now = knows((before,), (knowing(right(20, 100), "arc", **ends),))
        assert failed(base, now, training) == closed


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"digest": "sha256:other"}, "general accuracy questions"),
        ({"metric": "f1"}, "general f1 questions"),
        ({"n": 99}, "general accuracy number of questions"),
        ({"value": 0.95}, "general accuracy tuned value"),
        ({"scores": right(90, 99)}, "general accuracy tuned scores"),
    ],
)
def test_other_questions_or_made_up_scores_close_it(knows, training, change, name):
    base, now = knows((knowing(right(90, 100)),), (knowing(right(90, 100), **change),))
    assert name in failed(base, now, training)
    lax = failed(base, now, training, ModelPerformance(max_forgetting=None))
    assert lax == set()


def test_metrics_of_a_benchmark_are_told_apart_and_its_perplexity_is_no_share(knows, training):
    def asked(accuracy, surprise):
        low = {"scores": (), "low": surprise, "high": surprise, "value": surprise}
        return (
            knowing(right(accuracy, 100), "arc"),
            knowing(right(accuracy, 100), "arc", metric="acc_norm"),
            knowing(right(50, 100), "arc", metric="perplexity", higher_is_better=False, **low),
        )

    base, now = knows(asked(90, 2.0), asked(50, 0.5))
    assert failed(base, now, training) == {
        "arc accuracy fall beyond chance",
        "arc acc_norm fall beyond chance",
    }


def test_knowledge_that_only_one_model_was_asked_about_closes_it(knows, training):
    asked = (knowing(right(90, 100)),)
    assert failed(*knows(asked, ()), training) == {"general accuracy questions"}
    assert failed(*knows((), asked), training) == {"general accuracy questions"}
    assert failed(*knows((), ()), training) == set()
