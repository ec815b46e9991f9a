"""deployment-ready: the verified file, whole, documented, and answering."""

import pytest

from gates.deployment_ready import deployment_ready
from gates.thresholds import DeploymentReady
from tests.gates.conftest import digest

DEFAULT = DeploymentReady()
CHOSEN = digest("Q4_K_M")


def failed(bundle, quantized, thresholds=DEFAULT, chosen=CHOSEN):
    return {check.name for check in deployment_ready(bundle, quantized, thresholds, chosen).failed}


def smoked(bundle, **update):
    return bundle.model_copy(update={"smoke": bundle.smoke.model_copy(update=update)})


def test_a_working_bundle_opens_the_gate(bundle, quantized):
    verdict = deployment_ready(bundle, quantized, DEFAULT, digest("Q4_K_M"))
    assert verdict.passed
    assert verdict.gate == "deployment-ready"
    assert len({check.name for check in verdict.checks}) == len(verdict.checks)


def test_missing_reports_close_it(bundle, quantized):
    assert failed(None, None) == {"bundle report", "quantization report"}
    assert failed(bundle, None) == {"quantization report"}
    assert failed(None, quantized) == {"bundle report"}


@pytest.mark.parametrize(
    ("update", "closed"),
    [
        ({"tokens_per_second": 5.0}, set()),
        ({"tokens_per_second": 4.99}, {"tokens per second"}),
        ({"tokens_per_second": 0.0}, {"speed measured", "tokens per second"}),
        ({"memory_mb": 8000.0}, set()),
        ({"memory_mb": 8000.1}, {"memory GB"}),
        ({"memory_mb": 0.0}, {"memory measured"}),
        ({"answer": " \n"}, {"the answer is not blank"}),
        ({"answer": ""}, {"the answer is not blank"}),
        ({"prompt": ""}, {"a question was asked"}),
        ({"tokens": 1}, set()),
        ({"tokens": 0}, {"answer tokens"}),
    ],
)
def test_the_question_from_both_sides(bundle, quantized, update, closed):
    assert failed(smoked(bundle, **update), quantized) == closed


def test_no_limit_still_needs_a_measurement(bundle, quantized):
    thresholds = DeploymentReady(max_memory_gb=None, min_tokens_per_second=0)
    assert failed(smoked(bundle, memory_mb=1e6), quantized, thresholds) == set()
    silent = smoked(bundle, memory_mb=0.0, tokens_per_second=0.0)
    assert failed(silent, quantized, thresholds) == {"memory measured", "speed measured"}


@pytest.mark.parametrize(("mb", "closed"), [(3.0, set()), (2.99, {"MB"})])
def test_size_limit_in_millions_of_bytes(bundle, quantized, mb, closed):
    assert failed(bundle, quantized, DeploymentReady(max_size_mb=mb)) == closed


@pytest.mark.parametrize(
    ("update", "closed"),
    [
        ({"missing": ("docs/model-card.md",)}, {"missing files"}),
        ({"card_errors": ("domain.name is required",)}, {"model card errors"}),
        ({"verified_digest": "sha256:older"}, {"bundled model"}),
        ({"gguf_type": "Q8_0"}, {"bundled type"}),
        ({"files": ()}, {"bundled model bytes", "bundled bytes"}),
    ],
)
def test_the_bundle_must_be_whole_and_of_the_verified_file(bundle, quantized, update, closed):
    assert failed(bundle.model_copy(update=update), quantized) == closed


def test_what_is_missing_is_named(bundle, quantized):
    lacking = bundle.model_copy(update={"missing": ("a", "b")})
    verdict = deployment_ready(lacking, quantized, DEFAULT, digest("Q4_K_M"))
    assert verdict.failed[0].detail == "a, b"


def test_a_file_that_was_never_quantized_here_closes_it(bundle, quantized):
    other = quantized.model_copy(update={"files": quantized.files[:1]})
    assert failed(bundle, other) == {"bundled model was quantized here", "bundled type", "bundled bytes"}


def test_blank_digests_do_not_agree(bundle, quantized):
    blank = bundle.model_copy(update={"gguf_digest": "", "verified_digest": ""})
    assert "bundled model" in failed(blank, quantized)


def test_a_cut_off_copy_closes_it(bundle, quantized):
    cut = bundle.files[0].model_copy(update={"bytes": 2_999_999})
    assert failed(bundle.model_copy(update={"files": (cut,)}), quantized) == {"bundled bytes"}


@pytest.mark.parametrize("chosen", [digest("Q8_0"), "", None])
def test_a_file_that_the_ladder_did_not_choose_closes_it(bundle, quantized, chosen):
    assert failed(bundle, quantized, DEFAULT, chosen) == {"bundled file"}
