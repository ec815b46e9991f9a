"""The gates block: its defaults, its limits, and what it refuses."""

import pytest
from pydantic import ValidationError

from gates.thresholds import (
    BaselineEstablished,
    DatasetValidated,
    DeploymentReady,
    GatesConfig,
    ModelPerformance,
    QuantizationVerified,
)
from gates.verdict import Waiver


def test_defaults_are_the_documented_ones():
    gates = GatesConfig()
    assert gates.dataset_validated == DatasetValidated(
        min_rows=100, min_test=30, max_leaked=0, max_duplicates=0, ratio_tolerance=0.05, max_rejected=None
    )
    assert gates.baseline_established == BaselineEstablished(min_examples=50)
    assert gates.model_performance == ModelPerformance(
        mode="relative", min_improvement=0.2, zero_floor=0.05, require_interval=True, max_eval_loss_rise=0.1
    )
    assert gates.quantization_verified == QuantizationVerified(
        max_drop=0.05, max_size_mb=None, max_prompt_mismatches=0
    )
    assert gates.deployment_ready == DeploymentReady(
        min_tokens_per_second=5, max_memory_gb=8, max_size_mb=None
    )
    assert gates.waivers == ()


@pytest.mark.parametrize("value", [0, 0.2, 1, 5, 1000.0])
def test_any_improvement_can_be_demanded(value):
    assert ModelPerformance(min_improvement=value).min_improvement == value


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (ModelPerformance, {"min_improvement": -0.1}),
        (ModelPerformance, {"min_improvement": float("nan")}),
        (ModelPerformance, {"min_improvement": float("inf")}),
        (ModelPerformance, {"mode": "guess"}),
        (ModelPerformance, {"zero_floor": 0}),
        (ModelPerformance, {"min_improvment": 0.2}),
        (DatasetValidated, {"min_test": 0}),
        (DatasetValidated, {"max_leaked": -1}),
        (BaselineEstablished, {"min_examples": 0}),
        (QuantizationVerified, {"max_drop": 1.5}),
        (QuantizationVerified, {"max_size_mb": 0}),
        (DeploymentReady, {"min_tokens_per_second": -1}),
        (DeploymentReady, {"max_memory_gb": 0}),
        (ModelPerformance, {"require": {"chrf": {}}}),
        (ModelPerformance, {"require": {"chrf": {"min": None}}}),
    ],
)
def test_nonsense_is_refused(model, values):
    with pytest.raises(ValidationError):
        model(**values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [({}, 0.1), ({"max_drop": 0.2}, 0.4), ({"max_drop": 0}, 0), ({"max_drop_upper": 0.07}, 0.07)],
)
def test_the_bound_on_the_upper_end_follows_max_drop_unless_given(values, expected):
    assert QuantizationVerified(**values).drop_upper == pytest.approx(expected)


def test_a_gate_is_waived_once():
    waiver = {"gate": "model-performance", "reason": "demo"}
    assert GatesConfig(waivers=[waiver]).waivers == (Waiver(**waiver),)
    with pytest.raises(ValidationError, match="model-performance is waived twice"):
        GatesConfig(waivers=[waiver, {**waiver, "reason": "other"}])


def test_a_waiver_without_reason_or_for_no_gate_is_refused():
    for waiver in (
        {"gate": "model-performance"},
        {"gate": "nope", "reason": "x"},
        {"gate": "", "reason": "x"},
    ):
        with pytest.raises(ValidationError):
            GatesConfig(waivers=[waiver])
