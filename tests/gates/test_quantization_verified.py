"""quantization-verified: real files, smaller, of this model, and nearly as good."""

import pytest

from core.evaluation.statistics import paired_relative_gain
from gates.quantization_verified import quantization_verified
from gates.thresholds import QuantizationVerified

DEFAULT = QuantizationVerified()
LENIENT = QuantizationVerified(max_drop=1, max_drop_upper=2)


def failed(tuned, quantized, thresholds=DEFAULT):
    return {check.name for check in quantization_verified(tuned, quantized, thresholds).failed}


def right(count, n=60):
    return (1.0,) * count + (0.0,) * (n - count)


def spoil(quantized, **update):
    """Change the second file, Q4_K_M."""
    first, second = quantized.files
    return quantized.model_copy(update={"files": (first, second.model_copy(update=update))})


def spoil_evaluation(quantized, **update):
    return spoil(quantized, evaluation=quantized.files[1].evaluation.model_copy(update=update))


def rescored(quantized, scored, scores):
    return spoil(quantized, evaluation=scored("Q4_K_M", scores, "Q4_K_M"))


def test_files_that_keep_the_score_open_the_gate(tuned, quantized):
    verdict = quantization_verified(tuned, quantized, DEFAULT)
    assert verdict.passed
    assert verdict.gate == "quantization-verified"
    assert len({check.name for check in verdict.checks}) == len(verdict.checks)


def test_missing_reports_close_it(tuned, quantized):
    assert failed(None, None) == {"tuned report", "quantization report"}
    assert failed(tuned, None) == {"quantization report"}
    assert failed(None, quantized) == {"tuned report"}


def test_no_file_closes_it(tuned, quantized):
    assert failed(tuned, quantized.model_copy(update={"files": ()})) == {"files"}


def test_one_type_twice_closes_it(tuned, quantized):
    assert "types" in failed(tuned, quantized.model_copy(update={"files": (quantized.files[0],) * 2}))


@pytest.mark.parametrize(
    ("update", "closed"),
    [
        ({"bytes": 0}, {"Q4_K_M bytes"}),
        ({"bytes": 1}, set()),
        ({"bytes": 9_999_999}, set()),
        ({"bytes": 10_000_000}, {"Q4_K_M size"}),
        ({"has_magic": False}, {"Q4_K_M starts with GGUF"}),
        ({"loads": False}, {"Q4_K_M loads and generates"}),
        ({"prompt_mismatches": 1}, {"Q4_K_M prompts read differently"}),
        ({"prompt_mismatches": -1}, {"Q4_K_M prompts compared"}),
        ({"digest": "sha256:rewritten"}, {"Q4_K_M measured file"}),
    ],
)
def test_each_file_must_be_a_working_smaller_file(tuned, quantized, update, closed):
    assert failed(tuned, spoil(quantized, **update)) == closed


@pytest.mark.parametrize(
    ("mb", "closed"), [(5.5, set()), (5.4, {"Q8_0 MB"}), (2.9, {"Q8_0 MB", "Q4_K_M MB"})]
)
def test_size_limit_in_millions_of_bytes(tuned, quantized, mb, closed):
    assert failed(tuned, quantized, QuantizationVerified(max_size_mb=mb)) == closed


@pytest.mark.parametrize(("mismatches", "closed"), [(2, set()), (3, {"Q4_K_M prompts read differently"})])
def test_prompt_mismatches(tuned, quantized, mismatches, closed):
    thresholds = QuantizationVerified(max_prompt_mismatches=2)
    assert failed(tuned, spoil(quantized, prompt_mismatches=mismatches), thresholds) == closed


@pytest.mark.parametrize(("size", "closed"), [(11_000_000, set()), (11_000_001, {"bf16 size"})])
def test_a_sixteen_bit_container_may_be_a_tenth_larger(tuned, quantized, scored, size, closed):
    update = {"type": "bf16", "bytes": size, "evaluation": scored("bf16", right(48), "Q4_K_M")}
    assert failed(tuned, spoil(quantized, **update)) == closed


@pytest.mark.parametrize(("kept", "closed"), [(38, set()), (37, {"Q4_K_M drop"})])
def test_drop_relative_to_the_merged_score(scored, quantized, kept, closed):
    """Merged 40 of 60: two lost answers are exactly 5 %."""
    tuned = scored("tuned", right(40), "merged")
    first = quantized.files[0].model_copy(update={"evaluation": scored("Q8_0", right(40), "Q8_0")})
    made = rescored(quantized, scored, right(kept))
    made = made.model_copy(update={"files": (first, made.files[1])})
    assert failed(tuned, made, QuantizationVerified(max_drop=0.05, max_drop_upper=1)) == closed


def test_a_file_that_got_better_has_no_drop(tuned, quantized, scored):
    verdict = quantization_verified(tuned, rescored(quantized, scored, right(50)), DEFAULT)
    assert verdict.passed
    drop = next(check for check in verdict.checks if check.name == "Q4_K_M drop")
    assert drop.observed == pytest.approx(-2 / 48)


def test_upper_end_of_the_drop_from_both_sides(tuned, quantized, scored):
    """Seven answers lost, six found: the point drop is small, the doubt is not."""
    scores = right(41, 41) + (0.0,) * 7 + right(6, 12)
    made = rescored(quantized, scored, scores)
    gain = paired_relative_gain(
        tuned.scores["exact_match"], scores, floor=1e-9, resamples=2000, confidence=0.95, seed=3407
    )
    upper = -gain.low
    assert upper > 0.1
    assert failed(tuned, made) == {"Q4_K_M drop, upper end"}
    assert failed(tuned, made, QuantizationVerified(max_drop_upper=upper)) == set()
    assert failed(tuned, made, QuantizationVerified(max_drop_upper=upper - 1e-6)) == {
        "Q4_K_M drop, upper end"
    }


def test_a_merged_model_that_scores_nothing_leaves_nothing_to_keep(scored, quantized):
    nothing = scored("tuned", right(0), "merged")
    files = tuple(
        file.model_copy(update={"evaluation": scored(file.type, right(0), file.type)})
        for file in quantized.files
    )
    made = quantized.model_copy(update={"files": files})
    assert failed(nothing, made, LENIENT) == {
        "tuned score",
        "Q8_0 drop",
        "Q8_0 drop, upper end",
        "Q4_K_M drop",
        "Q4_K_M drop, upper end",
    }


def test_a_single_right_answer_is_enough_to_compare(scored, quantized):
    tuned = scored("tuned", right(1), "merged")
    files = tuple(
        file.model_copy(update={"evaluation": scored(file.type, right(1), file.type)})
        for file in quantized.files
    )
    assert failed(tuned, quantized.model_copy(update={"files": files})) == set()


def test_files_of_another_model_close_it(tuned, quantized):
    assert failed(tuned, quantized.model_copy(update={"merged_digest": "sha256:older"})) == {
        "quantized model"
    }
    assert failed(tuned, quantized.model_copy(update={"merged_digest": ""})) == {"quantized model"}


def test_an_unmeasured_merged_size_closes_it(tuned, quantized):
    names = failed(tuned, quantized.model_copy(update={"merged_bytes": 0}))
    assert names == {"merged bytes", "Q8_0 size", "Q4_K_M size"}


UNCOMPARABLE = {
    "Q4_K_M test file": {"split_digest": "sha256:older"},
    "Q4_K_M same examples in order": {"ids": tuple(f"other-{place}" for place in range(60))},
    "Q4_K_M interval confidence": {"confidence": 0.9},
    "Q4_K_M arm": {"arm": "tuned"},
}


@pytest.mark.parametrize("name", UNCOMPARABLE)
def test_a_stale_measurement_closes_it(tuned, quantized, name):
    made = spoil_evaluation(quantized, **UNCOMPARABLE[name])
    assert failed(tuned, made) == {name, "Q4_K_M drop, upper end"}


def test_a_measurement_of_another_file_closes_it(tuned, quantized):
    made = spoil_evaluation(quantized, model_digest=tuned.model_digest)
    assert failed(tuned, made) == {"Q4_K_M measured file"}


@pytest.mark.parametrize(("key", "value"), [("strategy", "sampled"), ("max_new_tokens", 63)])
def test_other_decoding_closes_it(tuned, quantized, key, value):
    decoding = tuned.decoding.model_copy(update={key: value})
    names = {"strategy": "Q4_K_M decoding strategy", "max_new_tokens": "Q4_K_M max_new_tokens"}
    assert failed(tuned, spoil_evaluation(quantized, decoding=decoding)) == {
        names[key],
        "Q4_K_M drop, upper end",
    }


def test_the_files_own_tokenizer_digests_prompts_in_its_own_way(tuned, quantized):
    decoding = tuned.decoding.model_copy(update={"prompt_digest": "sha256:own"})
    assert failed(tuned, spoil_evaluation(quantized, decoding=decoding)) == set()


def test_a_retention_raised_by_hand_closes_it(tuned, quantized, scored):
    bad = scored("Q4_K_M", right(20), "Q4_K_M").model_copy(update={"value": 0.8})
    assert "Q4_K_M value" in failed(tuned, spoil(quantized, evaluation=bad))
