"""Reports that are absent, torn or made up do not count as evidence."""

import math

import pytest

from core.data.reports import SplitReport
from core.evaluation.reports import EvalReport
from gates.evidence import all_hold, comparable, honest, whole


def failed(checks):
    return {check.name for check in checks if not check.passed}


def test_a_whole_report_comes_back_equal(tuned):
    report, check = whole("tuned", tuned, EvalReport)
    assert report == tuned
    assert check.passed


def test_an_absent_report_is_named(tuned):
    report, check = whole("tuned", None, EvalReport)
    assert report is None
    assert (check.name, check.observed, check.passed) == ("tuned report", "missing", False)


@pytest.mark.parametrize("stranger", [{}, "NOT JSON", 0, False])
def test_a_stranger_is_malformed(stranger):
    report, check = whole("tuned", stranger, EvalReport)
    assert report is None
    assert check.observed == "malformed"


def test_another_kind_of_report_is_malformed(split):
    report, check = whole("tuned", split, EvalReport)
    assert report is None
    assert "no EvalReport" in check.detail
    assert whole("split", split, SplitReport)[0] == split


def test_a_report_made_around_validation_is_malformed_and_says_where(tuned):
    nested = tuned.model_copy(update={"decoding": tuned.decoding.model_copy(update={"max_new_tokens": None})})
    report, check = whole("tuned", nested, EvalReport)
    assert report is None
    assert "decoding.max_new_tokens" in check.detail
    report, check = whole("tuned", tuned.model_copy(update={"value": math.nan}), EvalReport)
    assert report is None
    assert "value: Input should be a finite number" in check.detail
    assert "and 11 more" in whole("tuned", EvalReport.model_construct(), EvalReport)[1].detail


def test_numbers_written_as_text_come_back_as_numbers_or_not_at_all(tuned):
    assert whole("tuned", tuned.model_copy(update={"value": "0.8"}), EvalReport)[0].value == 0.8
    assert whole("tuned", tuned.model_copy(update={"value": "80%"}), EvalReport)[0] is None


def test_an_honest_report_holds(tuned):
    assert all_hold(honest("tuned", tuned))


LIES = {
    "tuned arm": {"arm": "baseline"},
    "tuned value": {"value": 0.81},
    "tuned scores": {"n": 80},
    "tuned ids": {"ids": ("row-0",) * 60},
    "tuned ids listed": {"ids": ("row-0",)},
    "tuned metrics entry": {"metrics": {}},
    "tuned resamples": {"resamples": 999},
    "tuned confidence": {"confidence": 0.49},
    "tuned confidence below certainty": {"confidence": 1.01},
    "tuned examples": {"n": 0, "ids": (), "scores": {"exact_match": ()}},
}


@pytest.mark.parametrize("name", LIES)
def test_a_report_that_does_not_add_up_fails(tuned, name):
    assert name in failed(honest("tuned", tuned.model_copy(update=LIES[name])))


def test_limits_of_interval_settings_hold_on_the_good_side(tuned):
    for update in ({"resamples": 1000}, {"confidence": 0.5}, {"confidence": 1.0}):
        assert all_hold(honest("tuned", tuned.model_copy(update=update)))


@pytest.mark.parametrize(("score", "name"), [(1.01, "tuned highest score"), (-0.01, "tuned lowest score")])
def test_scores_lie_between_zero_and_one(scored, score, name):
    report = scored("tuned", (score, 0.5, 0.5), "merged")
    assert failed(honest("tuned", report)) == {name}


def test_a_metric_that_was_not_measured_fails(tuned):
    assert {"tuned value", "tuned scores", "tuned metrics entry"} <= failed(
        honest("tuned", tuned.model_copy(update={"metric": "localization_score"}))
    )


def test_equal_circumstances_are_comparable(tuned, baseline):
    assert all_hold(comparable("tuned", tuned, baseline.arms[0]))


def test_other_circumstances_are_not(tuned, baseline):
    swapped = tuned.ids[1::-1] + tuned.ids[2:]
    decoding = tuned.decoding
    spoils = {
        "tuned metric": {"metric": "token_f1"},
        "tuned test file": {"split_digest": "sha256:old"},
        "tuned number of examples": {"n": 59},
        "tuned same examples in order": {"ids": swapped},
        "tuned decoding strategy": {"decoding": decoding.model_copy(update={"strategy": "sampled"})},
        "tuned max_new_tokens": {"decoding": decoding.model_copy(update={"max_new_tokens": 32})},
        "tuned interval confidence": {"confidence": 0.9},
    }
    for name, update in spoils.items():
        assert failed(comparable("tuned", tuned.model_copy(update=update), baseline.arms[0])) == {name}
    check = comparable("tuned", tuned.model_copy(update={"ids": swapped}), baseline.arms[0])[3]
    assert check.detail == "example 0 is 'row-1' here and 'row-0' there"
