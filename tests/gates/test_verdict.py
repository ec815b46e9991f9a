"""Checks close on what is missing; a verdict follows from its checks and from nothing else."""

import json
import math
import pickle

import pytest
from pydantic import ValidationError

from gates.verdict import (
    GATE_NAMES,
    Check,
    GateClosed,
    Verdict,
    Waiver,
    above,
    at_least,
    at_most,
    below,
    differs,
    equals,
    is_true,
    near,
)

NAN, INF = math.nan, math.inf

BOUNDARIES = [
    (at_least, 0.3, 0.3, True),
    (at_least, 0.299999, 0.3, False),
    (at_least, (0.6 - 0.5) / 0.5, 0.2, True),
    (at_least, 100, 100, True),
    (at_least, 99, 100, False),
    (at_most, 0.05, 0.05, True),
    (at_most, 0.050001, 0.05, False),
    (at_most, 0.3 - 0.1 - 0.2, 0, True),
    (at_most, 1, 0, False),
    (above, 0, 0, False),
    (above, 1e-12, 0, True),
    (below, 1.0, 1.0, False),
    (below, 0.999, 1.0, True),
    (near, 0.1 + 0.2, 0.3, True),
    (near, 0.3001, 0.3, False),
    (equals, 3, 3, True),
    (equals, 3, 4, False),
    (equals, "a", "a", True),
    (equals, "a", "b", False),
    (differs, "a", "b", True),
    (differs, "a", "a", False),
]


@pytest.mark.parametrize(("make", "observed", "threshold", "passed"), BOUNDARIES)
def test_both_sides_of_every_boundary(make, observed, threshold, passed):
    check = make("x", observed, threshold)
    assert check.passed is passed
    assert (check.observed, check.threshold) == (observed, threshold)


MAKERS = [at_least, at_most, above, below, near, equals, differs]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("observed", [None, NAN, INF, -INF])
def test_what_is_missing_or_not_finite_fails(make, observed):
    check = make("x", observed, 0.0)
    assert not check.passed
    assert json.loads(check.model_dump_json())["observed"] in (None, "nan", "inf", "-inf")


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("threshold", [None, NAN, INF])
def test_a_threshold_that_says_nothing_fails(make, threshold):
    assert not make("x", 0.0, threshold).passed


@pytest.mark.parametrize("make", [at_least, at_most, above, below, near])
@pytest.mark.parametrize("observed", [True, "1", "62%", ""])
def test_only_numbers_are_compared_by_size(make, observed):
    assert not make("x", observed, 1).passed


@pytest.mark.parametrize("blank", ["", "  ", None, NAN])
def test_two_blanks_are_not_equal_and_not_different(blank):
    assert not equals("x", blank, blank).passed
    assert not differs("x", blank, "known").passed
    assert not differs("x", "known", blank).passed


def test_equality_does_not_cross_types():
    assert not equals("x", True, 1).passed
    assert not equals("x", "1", 1).passed


@pytest.mark.parametrize(
    ("observed", "passed"), [(True, True), (False, False), (None, False), (1, False), ("yes", False)]
)
def test_only_true_is_true(observed, passed):
    assert is_true("x", observed).passed is passed


def test_gate_names_are_the_five_of_the_product():
    assert GATE_NAMES == (
        "dataset-validated",
        "baseline-established",
        "model-performance",
        "quantization-verified",
        "deployment-ready",
    )


def test_summary_names_failed_checks_with_their_numbers():
    checks = [
        at_least("gain", 0.1, 0.3),
        at_least("rows", 5, 1),
        is_true("loads", False),
        at_most("drop", None, 0.05),
    ]
    summary = Verdict.of("model-performance", checks).summary
    assert (
        summary
        == "model-performance: gain 0.100 against 0.300; loads False against True; drop missing against 0.050"
    )


def test_summary_tells_apart_what_rounds_to_the_same():
    assert (
        "gain 0.29999 against 0.3"
        in Verdict.of("model-performance", [at_least("gain", 0.29999, 0.3)]).summary
    )


def test_summary_shortens_digests():
    one, other = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    summary = Verdict.of("deployment-ready", [equals("model", one, other)]).summary
    assert summary == f"deployment-ready: model sha256:{'a' * 12} against sha256:{'b' * 12}"


def test_summary_of_an_open_gate_counts_its_checks():
    assert (
        Verdict.of("deployment-ready", [is_true("a", True)]).summary == "deployment-ready: passed, 1 checks"
    )


def test_one_failed_check_closes_the_gate():
    good, bad = is_true("a", True), is_true("b", False)
    assert Verdict.of("deployment-ready", [good, good]).passed
    verdict = Verdict.of("deployment-ready", [good, bad])
    assert not verdict.passed
    assert verdict.failed == (bad,)


def test_a_verdict_without_checks_is_refused():
    with pytest.raises(ValidationError, match="at least one check"):
        Verdict.of("deployment-ready", [])


@pytest.mark.parametrize("passed", [True, False])
def test_passed_cannot_contradict_the_checks(passed):
    with pytest.raises(ValidationError, match="contradicts"):
        Verdict(gate="deployment-ready", passed=passed, checks=(is_true("a", not passed),))


def test_an_edited_gate_file_is_refused():
    verdict = Verdict.of("deployment-ready", [at_least("speed", 1.0, 5.0)])
    edited = verdict.model_dump_json().replace(
        '"gate":"deployment-ready","passed":false', '"gate":"deployment-ready","passed":true'
    )
    with pytest.raises(ValidationError):
        Verdict.model_validate_json(edited)


def test_a_verdict_survives_json_with_its_types():
    checks = [
        at_least("a", 1, 1),
        at_least("b", 1.5, 1),
        equals("c", "x", "x"),
        is_true("d", True),
        at_most("e", None, 1),
    ]
    verdict = Verdict.of("deployment-ready", checks)
    back = Verdict.model_validate_json(verdict.model_dump_json())
    assert back == verdict
    assert [type(check.observed) for check in back.checks] == [int, float, str, bool, type(None)]


def test_an_unknown_gate_is_refused():
    with pytest.raises(ValidationError):
        Verdict.of("vibes-good", [is_true("a", True)])


def test_a_check_is_frozen():
    with pytest.raises(ValidationError):
        is_true("a", False).passed = True


def test_a_check_refuses_numbers_that_json_cannot_hold():
    with pytest.raises(ValidationError):
        Check(name="a", observed=NAN, threshold=1, comparison=">=", passed=True)


@pytest.mark.parametrize("reason", ["", "   ", "\n"])
def test_a_waiver_needs_a_reason(reason):
    with pytest.raises(ValidationError):
        Waiver(gate="model-performance", reason=reason)


def test_a_waiver_names_a_real_gate():
    with pytest.raises(ValidationError):
        Waiver(gate="all", reason="we are late")
    assert Waiver(gate="model-performance", reason=" demo only ").reason == "demo only"


def test_a_closed_gate_carries_its_verdict_through_pickling():
    verdict = Verdict.of("model-performance", [at_least("gain", 0.1, 0.3)])
    with pytest.raises(GateClosed, match="gain 0.100 against 0.300") as caught:
        raise GateClosed(verdict)
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.verdict == verdict
    assert str(again) == verdict.summary
