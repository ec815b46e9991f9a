"""model-performance: the gain, its interval, the convergence, and whose numbers they are."""

import pytest

from core.evaluation.statistics import paired_difference, paired_relative_gain
from core.training.reports import EvalLoss
from gates.model_performance import model_performance
from gates.thresholds import ModelPerformance

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
def test_gain_from_both_sides(scored, training, mode, before, after, wanted, closed):
    thresholds = ModelPerformance(mode=mode, min_improvement=wanted, **POINT_ONLY)
    base, now = scored("baseline", right(before), "base"), scored("tuned", right(after), "merged")
    assert failed(base, now, training, thresholds) == ({"gain"} if closed else set())


@pytest.mark.parametrize("mode", ["relative", "absolute"])
def test_the_lower_end_of_the_interval_from_both_sides(scored, training, mode):
    base, now = (
        scored("baseline", right(20), "base"),
        scored("tuned", right(16, 16) + right(14, 44), "merged"),
    )
    how = {"resamples": 2000, "confidence": 0.95, "seed": 3407}
    scores = base.scores["exact_match"], now.scores["exact_match"]
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


def test_a_gain_of_a_few_lucky_examples_closes_it_and_says_what_could_be_seen(scored, training):
    base, now = scored("baseline", right(10), "base"), scored("tuned", right(13), "merged")
    verdict = model_performance(base, now, training, DEFAULT)
    assert {check.name for check in verdict.failed} == {"gain, lower end"}
    details = {check.name: check.detail for check in verdict.checks}
    assert "3 fixed, 0 broken, McNemar p = 0.25" in details["gain"]
    # (1.960 + 0.842) * sqrt(0.05 * 0.95) / sqrt(60) = 0.0788
    assert "60 examples could not have detected less than 7.9 points" in details["gain, lower end"]


def test_the_mode_is_never_guessed(scored, training):
    base, now = scored("baseline", right(12), "base"), scored("tuned", right(18), "merged")
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
def test_a_base_near_zero_counts_as_the_floor(scored, training, before, after, closed):
    base, now = scored("baseline", right(before), "base"), scored("tuned", right(after), "merged")
    assert failed(base, now, training, ModelPerformance(**POINT_ONLY)) == closed


def test_a_tiny_base_does_not_explode(scored, training):
    base, now = scored("baseline", right(1, 1000), "base"), scored("tuned", right(50, 1000), "merged")
    verdict = model_performance(base, now, training, DEFAULT)
    gain = next(check for check in verdict.checks if check.name == "gain")
    assert gain.observed == pytest.approx((0.05 - 0.001) / 0.05)


def test_a_model_that_scores_nothing_closes_it_in_both_modes(scored, training):
    base, now = scored("baseline", right(0), "base"), scored("tuned", right(0), "merged")
    for mode in ("relative", "absolute"):
        thresholds = ModelPerformance(mode=mode, min_improvement=0)
        assert failed(base, now, training, thresholds) == {"tuned score"}


def test_a_threshold_out_of_reach_is_pointed_out(scored, training):
    base, now = scored("baseline", right(54), "base"), scored("tuned", right(60), "merged")
    verdict = model_performance(base, now, training, DEFAULT)
    assert (
        "even a perfect score would gain only 0.111"
        in next(c for c in verdict.failed if c.name == "gain").detail
    )


def test_partial_scores_are_paired_without_mcnemar(scored, training):
    base = scored("baseline", (0.1, 0.25, 0.3) * 20, "base")
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
    report = training.model_copy(update={"eval_losses": points})
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


@pytest.mark.parametrize(
    ("stale", "closed"),
    [
        ("test file", {"tuned test file", "gain, lower end"}),
        ("examples", {"tuned same examples in order", "gain, lower end"}),
        ("model", {"tuned model"}),
        ("confidence", {"tuned interval confidence", "gain, lower end"}),
    ],
)
def test_a_stale_evaluation_closes_it(baseline, tuned, training, stale, closed):
    assert failed(baseline, tuned.model_copy(update=STALE[stale]), training) == closed


@pytest.mark.parametrize("key", ["strategy", "max_new_tokens", "prompt_digest"])
def test_other_decoding_closes_it(baseline, tuned, training, key):
    value = 65 if key == "max_new_tokens" else "other"
    other = tuned.model_copy(update={"decoding": tuned.decoding.model_copy(update={key: value})})
    names = {"strategy": "tuned decoding strategy", "prompt_digest": "tuned prompts"}
    assert failed(baseline, other, training) == {names.get(key, f"tuned {key}"), "gain, lower end"}


def test_another_metric_closes_it(baseline, scored, training):
    other = scored("tuned", right(48), "merged")
    other = other.model_copy(
        update={"metric": "f", "metrics": {"f": other.metrics["exact_match"]}, "scores": {"f": right(48)}}
    )
    assert failed(baseline, other, training) == {"tuned metric", "gain, lower end"}


def test_the_base_itself_is_not_a_tuned_model(baseline, tuned, training):
    same = tuned.model_copy(update={"model_digest": baseline.model_digest})
    assert {"tuned model", "tuned model is not the base", "tuned model is not the baseline's"} <= failed(
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
