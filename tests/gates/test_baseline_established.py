"""baseline-established: on this test file, on enough examples, adding up."""

import pytest

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


@pytest.mark.parametrize(("least", "closed"), [(60, set()), (61, {"examples"})])
def test_examples(baseline, split, least, closed):
    assert failed(baseline, split, BaselineEstablished(min_examples=least)) == closed


def test_a_base_that_knows_nothing_is_still_a_baseline(scored, split):
    assert failed(scored("baseline", (0.0,) * 60, "base"), split) == set()


def test_a_measurement_on_an_older_test_file_closes_it(baseline, split):
    assert failed(baseline.model_copy(update={"split_digest": split.digests["val"]}), split) == {"test file"}
    assert failed(baseline, split.model_copy(update={"digests": {}})) == {"test file"}


def test_more_examples_than_test_rows_close_it(baseline, split):
    assert failed(baseline, split.model_copy(update={"test": 59})) == {"examples within the test split"}


def test_a_model_or_prompts_without_a_digest_close_it(baseline, split):
    assert failed(baseline.model_copy(update={"model_digest": ""}), split) == {"model known"}
    blank = baseline.decoding.model_copy(update={"prompt_digest": " "})
    assert failed(baseline.model_copy(update={"decoding": blank}), split) == {"prompts known"}


def test_a_value_that_its_examples_do_not_support_closes_it(baseline, split):
    assert failed(baseline.model_copy(update={"value": 0.1}), split) == {
        "baseline value",
        "baseline metrics entry",
    }


def test_another_arms_report_closes_it(tuned, split):
    assert failed(tuned, split) == {"baseline arm"}
