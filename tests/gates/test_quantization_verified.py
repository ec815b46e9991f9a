"""quantization-verified: a ladder of real files of this model, of which the smallest good one ships."""

import math

import pytest

from core.evaluation.reports import MetricValue
from core.evaluation.statistics import paired_relative_gain
from core.quantization.reports import Distance, OnnxBenchmark, OnnxFile, PytorchFile
from gates.quantization_verified import quantization_verified
from gates.rungs import judged, shipped
from gates.thresholds import QuantizationVerified
from tests.gates.conftest import digest

DEFAULT = QuantizationVerified()
LENIENT = QuantizationVerified(max_drop=1, max_drop_upper=2)


def failed(tuned, quantized, thresholds=DEFAULT, wanted="smallest"):
    return {check.name for check in quantization_verified(tuned, quantized, thresholds, wanted).failed}


def rejected(tuned, quantized, thresholds=DEFAULT, wanted="smallest"):
    verdict = quantization_verified(tuned, quantized, thresholds, wanted)
    return {check.name for check in verdict.tried if not check.passed}


def right(count, n=60):
    return (1.0,) * count + (0.0,) * (n - count)


def spoil(quantized, place=1, **update):
    """Change one file; the second is Q4_K_M, the smaller one."""
    files = list(quantized.files)
    files[place] = files[place].model_copy(update=update)
    return quantized.model_copy(update={"files": tuple(files)})


def spoil_evaluation(quantized, **update):
    return spoil(quantized, evaluation=quantized.files[1].evaluation.model_copy(update=update))


def rescored(quantized, scored, scores, kind="Q4_K_M"):
    place = [file.type for file in quantized.files].index(kind)
    return spoil(quantized, place, evaluation=scored(kind, scores, kind))


def alone(quantized, kind="Q4_K_M"):
    """Leave one file, so that it alone decides."""
    return quantized.model_copy(update={"files": tuple(f for f in quantized.files if f.type == kind)})


def ship(tuned, quantized, thresholds=DEFAULT, wanted="smallest"):
    file = shipped(tuned, quantized, thresholds, wanted)
    return file.type if file else None


# The ladder


def test_the_smallest_of_good_files_ships(tuned, quantized):
    verdict = quantization_verified(tuned, quantized, DEFAULT)
    assert verdict.passed
    assert verdict.gate == "quantization-verified"
    names = [check.name for check in (*verdict.checks, *verdict.tried)]
    assert len(set(names)) == len(names)
    assert ship(tuned, quantized) == "Q4_K_M"
    assert {check.name.split()[0] for check in verdict.tried} == {"Q8_0"}


def test_real_bytes_decide_which_is_smallest_not_the_type(tuned, quantized):
    assert ship(tuned, spoil(quantized, 0, bytes=2_999_999)) == "Q8_0"
    assert ship(tuned, spoil(quantized, 0, bytes=3_000_001)) == "Q4_K_M"


def test_a_lossy_rung_is_on_record_and_the_next_one_ships(tuned, quantized, scored):
    made = rescored(quantized, scored, right(30))
    verdict = quantization_verified(tuned, made, DEFAULT)
    assert verdict.passed
    assert ship(tuned, made) == "Q8_0"
    assert rejected(tuned, made) == {"Q4_K_M drop", "Q4_K_M drop, upper end"}
    told = next(check for check in verdict.checks if check.name == "types good enough")
    assert (told.observed, told.threshold) == (1, 1)
    assert "Q4_K_M: drop, drop, upper end failed; Q8_0 holds" in told.detail


def test_when_every_rung_is_bad_the_most_faithful_one_says_why(tuned, quantized, scored):
    made = rescored(rescored(quantized, scored, right(20)), scored, right(30), "Q8_0")
    assert failed(tuned, made) == {"types good enough", "Q8_0 drop", "Q8_0 drop, upper end"}
    assert rejected(tuned, made) == {"Q4_K_M drop", "Q4_K_M drop, upper end"}
    assert ship(tuned, made) is None
    assert judged(tuned, made, DEFAULT).type == "Q8_0"


def test_a_named_type_ships_although_a_smaller_one_would_do(tuned, quantized):
    assert ship(tuned, quantized, wanted="Q8_0") == "Q8_0"
    assert quantization_verified(tuned, quantized, DEFAULT, "Q8_0").passed


def test_a_named_type_that_is_bad_closes_the_gate_although_another_is_good(tuned, quantized, scored):
    made = rescored(quantized, scored, right(30), "Q8_0")
    assert ship(tuned, made) == "Q4_K_M"
    assert ship(tuned, made, wanted="Q8_0") is None
    names = failed(tuned, made, wanted="Q8_0")
    assert names == {"Q8_0 is good enough", "Q8_0 drop", "Q8_0 drop, upper end"}
    verdict = quantization_verified(tuned, made, DEFAULT, "Q8_0")
    assert "smallest would ship Q4_K_M" in verdict.failed[0].detail
    assert judged(tuned, made, DEFAULT, "Q8_0").type == "Q8_0"


def test_a_named_type_that_nobody_measured_closes_it(tuned, quantized):
    assert failed(tuned, quantized, wanted="Q6_K") == {"Q6_K is good enough"}
    assert shipped(tuned, quantized, DEFAULT, "Q6_K") is judged(tuned, quantized, DEFAULT, "Q6_K") is None


def test_types_left_unmeasured_close_nothing_once_one_is_good(tuned, quantized):
    assert failed(tuned, quantized.model_copy(update={"skipped": ("f16",)})) == set()
    both = quantized.model_copy(update={"skipped": ("Q8_0",)})
    assert failed(tuned, both) == {"types skipped and measured"}


def test_missing_reports_close_it(tuned, quantized):
    assert failed(None, None) == {"tuned report", "quantization report"}
    assert failed(tuned, None) == {"quantization report"}
    assert failed(None, quantized) == {"tuned report"}


def test_no_file_closes_it(tuned, quantized):
    assert failed(tuned, quantized.model_copy(update={"files": ()})) == {"files", "types good enough"}


def test_one_type_twice_closes_it(tuned, quantized):
    assert "types" in failed(tuned, quantized.model_copy(update={"files": (quantized.files[0],) * 2}))


# The 16-bit file


@pytest.mark.parametrize(
    ("update", "closed"),
    [
        ({"kl": 1e-3}, set()),
        ({"kl": 1.01e-3}, {"16-bit divergence"}),
        ({"argmax_agreement": 0.98}, set()),
        ({"argmax_agreement": 0.9799}, {"16-bit same likeliest token"}),
        ({"kl": 0.8, "argmax_agreement": 0.3}, {"16-bit divergence", "16-bit same likeliest token"}),
        ({"tokens": 0}, {"16-bit logits compared"}),
        ({"kl": -0.1}, {"16-bit logits divergence is one"}),
        ({"argmax_agreement": 1.1}, {"16-bit logits agreement is a share of all"}),
    ],
)
def test_the_sixteen_bit_file_must_compute_what_the_model_does(tuned, quantized, update, closed):
    parity = quantized.parity.model_copy(update=update)
    assert failed(tuned, quantized.model_copy(update={"parity": parity})) == closed


def test_an_export_bug_names_the_familys_likely_causes(tuned, quantized):
    parity = quantized.parity.model_copy(update={"kl": 0.5})
    verdict = quantization_verified(tuned, quantized.model_copy(update={"parity": parity}), DEFAULT)
    assert verdict.failed[0].detail == (
        "the export of LlamaForCausalLM is wrong if this fails; likely causes for LlamaForCausalLM: "
        "the rotary base; query and key order"
    )


def test_a_reference_in_sixteen_bits_is_named_before_the_export_is_blamed(tuned, quantized):
    parity = quantized.parity.model_copy(update={"kl": 0.5})
    for dtype, starts in (
        ("bfloat16", "the model's own logits were computed in bfloat16"),
        ("float32", "the export"),
    ):
        made = quantized.model_copy(update={"parity": parity, "reference_dtype": dtype})
        assert quantization_verified(tuned, made, DEFAULT).failed[0].detail.startswith(starts)


def test_a_parity_that_nobody_measured_closes_it(tuned, quantized):
    names = {"16-bit logits compared", "16-bit divergence", "16-bit same likeliest token"}
    assert failed(tuned, quantized.model_copy(update={"parity": None})) == names


# Evidence: unsound numbers of any file close the gate, also of one that would not ship


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    ("update", "closed"),
    [
        ({"bytes": 0}, "{} bytes"),
        ({"has_magic": False}, "{} starts with GGUF"),
        ({"prompt_mismatches": -1}, "{} prompts compared"),
        ({"digest": "sha256:rewritten"}, "{} measured file"),
        ({"distance": None}, "{} logits compared"),
        ({"text_agreement": None}, "{} answers compared"),
        ({"text_agreement": 1.01}, "{} share of equal answers"),
        ({"broken": -1}, "{} broken answers"),
        ({"fixed": -1}, "{} fixed answers"),
        ({"broken": 30, "fixed": 31}, "{} changed answers"),
    ],
)
def test_unsound_evidence_of_any_file_closes_the_gate(tuned, quantized, place, update, closed):
    made = spoil(quantized, place, **update)
    name = closed.format(quantized.files[place].type)
    assert name in failed(tuned, made)
    assert ship(tuned, made) != quantized.files[place].type


@pytest.mark.parametrize("field", ["text_agreement", "load_seconds"])
def test_a_number_that_is_none_closes_it(tuned, quantized, field):
    names = failed(tuned, spoil(quantized, **{field: math.nan}))
    assert names == {"quantization report"}


def test_a_distance_that_is_no_number_closes_it(tuned, quantized):
    distance = quantized.files[1].distance.model_copy(update={"kl": math.nan})
    assert failed(tuned, spoil(quantized, distance=distance)) == {"quantization report"}


UNCOMPARABLE = {
    "Q4_K_M test file": {"split_digest": "sha256:older"},
    "Q4_K_M same examples in order": {"ids": tuple(f"other-{place}" for place in range(60))},
    "Q4_K_M interval confidence": {"confidence": 0.9},
    "Q4_K_M arm": {"arm": "tuned"},
}


@pytest.mark.parametrize("name", UNCOMPARABLE)
def test_a_stale_measurement_closes_it_although_another_file_is_good(tuned, quantized, name):
    made = spoil_evaluation(quantized, **UNCOMPARABLE[name])
    assert failed(tuned, made) == {name}
    assert ship(tuned, made) == "Q8_0"


def test_a_measurement_of_another_file_closes_it(tuned, quantized):
    made = spoil_evaluation(quantized, model_digest=tuned.model_digest)
    assert failed(tuned, made) == {"Q4_K_M measured file"}


@pytest.mark.parametrize(("key", "value"), [("strategy", "sampled"), ("max_new_tokens", 63)])
def test_other_decoding_closes_it(tuned, quantized, key, value):
    decoding = tuned.decoding.model_copy(update={key: value})
    names = {"strategy": "Q4_K_M decoding strategy", "max_new_tokens": "Q4_K_M max_new_tokens"}
    assert failed(tuned, spoil_evaluation(quantized, decoding=decoding)) == {names[key]}


def test_the_files_own_tokenizer_digests_prompts_in_its_own_way(tuned, quantized):
    decoding = tuned.decoding.model_copy(update={"prompt_digest": "sha256:own"})
    assert failed(tuned, spoil_evaluation(quantized, decoding=decoding)) == set()


def test_a_retention_raised_by_hand_closes_it(tuned, quantized, scored):
    bad = scored("Q4_K_M", right(20), "Q4_K_M").model_copy(update={"value": 0.8})
    made = spoil(quantized, evaluation=bad)
    assert "Q4_K_M value" in failed(tuned, made)
    assert ship(tuned, made) == "Q8_0"


def test_files_of_another_model_close_it(tuned, quantized):
    for older in ("sha256:older", ""):
        assert failed(tuned, quantized.model_copy(update={"merged_digest": older})) == {"quantized model"}


def test_an_unmeasured_merged_size_closes_it(tuned, quantized):
    names = failed(tuned, quantized.model_copy(update={"merged_bytes": 0}))
    assert names == {"merged bytes", "types good enough", "Q8_0 size"}


# What makes a rung good enough, each limit from both sides


@pytest.mark.parametrize(
    ("update", "why"),
    [
        ({"bytes": 9_999_999}, set()),
        ({"bytes": 10_000_000}, {"Q4_K_M size"}),
        ({"loads": False}, {"Q4_K_M loads and generates"}),
        ({"prompt_mismatches": 1}, {"Q4_K_M prompts read differently"}),
    ],
)
def test_each_rung_must_be_a_working_smaller_file(tuned, quantized, update, why):
    made = alone(spoil(quantized, **update))
    assert failed(tuned, made) == (why | {"types good enough"} if why else set())
    assert ship(tuned, made) == (None if why else "Q4_K_M")


@pytest.mark.parametrize(("mb", "ships"), [(5.5, "Q4_K_M"), (3.0, "Q4_K_M"), (2.9, None)])
def test_size_limit_in_millions_of_bytes(tuned, quantized, mb, ships):
    thresholds = QuantizationVerified(max_size_mb=mb)
    assert ship(tuned, quantized, thresholds) == ships
    assert quantization_verified(tuned, quantized, thresholds).passed == bool(ships)


@pytest.mark.parametrize(("mismatches", "good"), [(2, True), (3, False)])
def test_prompt_mismatches(tuned, quantized, mismatches, good):
    thresholds = QuantizationVerified(max_prompt_mismatches=2)
    made = alone(spoil(quantized, prompt_mismatches=mismatches))
    assert quantization_verified(tuned, made, thresholds).passed is good


@pytest.mark.parametrize(("limit", "ships"), [(None, "Q4_K_M"), (2e-3, "Q4_K_M"), (1.99e-3, "Q8_0")])
def test_divergence_limit_from_both_sides(tuned, quantized, limit, ships):
    nearer = Distance(max_abs=0.1, kl=1e-5, argmax_agreement=1.0, tokens=90)
    made = spoil(quantized, 0, distance=nearer)
    assert ship(tuned, made, QuantizationVerified(max_kl=limit)) == ships


@pytest.mark.parametrize(("size", "good"), [(11_000_000, True), (11_000_001, False)])
def test_a_sixteen_bit_container_may_be_a_tenth_larger(tuned, quantized, scored, size, good):
    update = {"type": "bf16", "bytes": size, "evaluation": scored("bf16", right(48), "Q4_K_M")}
    made = alone(spoil(quantized, **update), "bf16")
    assert quantization_verified(tuned, made, DEFAULT).passed is good


@pytest.mark.parametrize(("kept", "good"), [(38, True), (37, False)])
def test_drop_relative_to_the_merged_score(scored, quantized, kept, good):
    """Merged 40 of 60: two lost answers are exactly 5 %."""
    tuned = scored("tuned", right(40), "merged")
    made = alone(rescored(quantized, scored, right(kept)))
    thresholds = QuantizationVerified(max_drop=0.05, max_drop_upper=1)
    assert failed(tuned, made, thresholds) == (set() if good else {"types good enough", "Q4_K_M drop"})


def test_a_file_that_got_better_has_no_drop(tuned, quantized, scored):
    verdict = quantization_verified(tuned, rescored(quantized, scored, right(50)), DEFAULT)
    assert verdict.passed
    drop = next(check for check in verdict.checks if check.name == "Q4_K_M drop")
    assert drop.observed == pytest.approx(-2 / 48)


def test_upper_end_of_the_drop_from_both_sides(tuned, quantized, scored):
    """Seven answers lost, six found: the point drop is small, the doubt is not."""
    scores = right(41, 41) + (0.0,) * 7 + right(6, 12)
    made = alone(rescored(quantized, scored, scores))
    gain = paired_relative_gain(
        tuned.scores["exact_match"], scores, floor=1e-9, resamples=2000, confidence=0.95, seed=3407
    )
    upper = -gain.low
    assert upper > 0.1
    names = {"types good enough", "Q4_K_M drop, upper end"}
    assert failed(tuned, made) == names
    assert failed(tuned, made, QuantizationVerified(max_drop_upper=upper)) == set()
    assert failed(tuned, made, QuantizationVerified(max_drop_upper=upper - 1e-6)) == names


def test_where_less_is_better_a_rise_is_the_drop(tuned, quantized):
    def surprised(report, loss):
        value = MetricValue(value=math.exp(loss), low=1.0, high=9.0, n=60)
        return report.model_copy(
            update={
                "metric": "perplexity",
                "value": math.exp(loss),
                "metrics": {"perplexity": value},
                "scores": {"perplexity": (loss,) * 60},
                "weights": {"perplexity": (5.0,) * 60},
            }
        )

    before = surprised(tuned, 1.0)
    for loss, ships in ((1.0 + math.log(1.04), "Q4_K_M"), (1.0 + math.log(1.06), None), (0.9, "Q4_K_M")):
        made = spoil(alone(quantized), 0, evaluation=surprised(quantized.files[1].evaluation, loss))
        assert ship(before, made) == ships, loss


def test_a_merged_model_that_scores_nothing_leaves_nothing_to_keep(scored, quantized):
    nothing = scored("tuned", right(0), "merged")
    files = tuple(
        f.model_copy(update={"evaluation": scored(f.type, right(0), f.type)}) for f in quantized.files
    )
    made = quantized.model_copy(update={"files": files})
    names = {"tuned score", "types good enough", "Q8_0 drop", "Q8_0 drop, upper end"}
    assert failed(nothing, made, LENIENT) == names


def test_a_single_right_answer_is_enough_to_compare(scored, quantized):
    tuned = scored("tuned", right(1), "merged")
    files = tuple(
        f.model_copy(update={"evaluation": scored(f.type, right(1), f.type)}) for f in quantized.files
    )
    assert failed(tuned, quantized.model_copy(update={"files": files})) == set()


# ONNX


def onnx(kind="fp32", **update):
    near = Distance(max_abs=2e-5, kl=1e-9, argmax_agreement=1.0, tokens=90)
    benchmark = OnnxBenchmark(provider="CPUExecutionProvider", prompt_tokens=32, mean_ms=9.0, std_ms=1.0, min_ms=8.0,
                              max_ms=12.0, tokens_per_second=300.0, iterations=10)  # fmt: skip
    file = OnnxFile(type=kind, path=f"models/onnx/{kind}", digest=digest(kind), bytes=4_000_000, distance=near,
                    decode_distance=near, text_agreement=1.0, benchmark=benchmark)  # fmt: skip
    return file.model_copy(update=update)


@pytest.mark.parametrize("field", ["distance", "decode_distance"])
@pytest.mark.parametrize(("gap", "good"), [(1e-3, True), (1.01e-3, False)])
def test_full_precision_onnx_must_equal_the_model(tuned, quantized, field, gap, good):
    file = onnx()
    file = file.model_copy(update={field: getattr(file, field).model_copy(update={"max_abs": gap})})
    made = quantized.model_copy(update={"onnx": (file,)})
    name = {"distance": "ONNX fp32 prompt difference", "decode_distance": "ONNX fp32 step difference"}[field]
    assert failed(tuned, made) == (set() if good else {name})


def test_a_rounded_onnx_model_is_reported_but_not_held_to_equality(tuned, quantized):
    far = Distance(max_abs=3.0, kl=0.02, argmax_agreement=0.97, tokens=90)
    made = quantized.model_copy(update={"onnx": (onnx("int8", distance=far, decode_distance=far),)})
    assert failed(tuned, made) == set()


def test_a_measured_onnx_model_is_judged_like_a_rung(tuned, quantized, scored):
    for count, names in ((47, set()), (30, {"ONNX int8 drop", "ONNX int8 drop, upper end"})):
        file = onnx("int8", evaluation=scored("onnx-int8", right(count), "int8"))
        made = quantized.model_copy(update={"onnx": (file,)})
        assert failed(tuned, made) == set()
        assert rejected(tuned, made) == names


def test_unsound_onnx_evidence_closes_it(tuned, quantized, scored):
    for update, name in (
        ({"bytes": 0}, "ONNX fp32 bytes"),
        ({"digest": ""}, "ONNX fp32 digest known"),
        ({"text_agreement": 1.5}, "ONNX fp32 share of equal answers of all"),
        ({"evaluation": scored("onnx-fp32", right(48), "other")}, "ONNX fp32 measured file"),
        ({"evaluation": scored("tuned", right(48), "fp32")}, "onnx-fp32 arm"),
    ):
        made = quantized.model_copy(update={"onnx": (onnx(**update),)})
        assert failed(tuned, made) == {name}


# PyTorch


def pytorch(scored, count=47, **update):
    near = Distance(max_abs=0.9, kl=2e-3, argmax_agreement=0.98, tokens=400)
    file = PytorchFile(type="int8", path="models/pytorch/int8", digest=digest("int8"), bytes=4_000_000,
                       distance=near, text_agreement=0.98, evaluation=scored("pytorch-int8", right(count), "int8"))  # fmt: skip
    return file.model_copy(update=update)


def with_pytorch(quantized, *files):
    return quantized.model_copy(update={"pytorch": files})


def test_a_good_pytorch_model_is_on_record_beside_the_rung_that_ships(tuned, quantized, scored):
    made = with_pytorch(quantized, pytorch(scored))
    verdict = quantization_verified(tuned, made, DEFAULT)
    assert verdict.passed
    assert ship(tuned, made) == "Q4_K_M"
    names = [check.name for check in (*verdict.checks, *verdict.tried)]
    assert len(set(names)) == len(names)
    tried = {check.name: check for check in verdict.tried if check.name.startswith("PyTorch")}
    assert set(tried) == {"PyTorch int8 drop", "PyTorch int8 drop, upper end"}
    assert "98.0 % said word for word" in tried["PyTorch int8 drop"].detail


@pytest.mark.parametrize(("count", "kept"), [(48, True), (38, True), (37, False), (0, False)])
def test_a_lossy_pytorch_model_closes_nothing(scored, quantized, count, kept):
    """Merged 40 of 60: two lost answers are exactly 5 %."""
    tuned, thresholds = (
        scored("tuned", right(40), "merged"),
        QuantizationVerified(max_drop=0.05, max_drop_upper=2),
    )
    files = tuple(
        f.model_copy(update={"evaluation": scored(f.type, right(40), f.type)}) for f in quantized.files
    )
    made = with_pytorch(quantized.model_copy(update={"files": files}), pytorch(scored, count))
    assert failed(tuned, made, thresholds) == set()
    assert rejected(tuned, made, thresholds) == (set() if kept else {"PyTorch int8 drop"})


def test_unsound_pytorch_evidence_closes_it(tuned, quantized, scored):
    far = {"max_abs": 0.9, "kl": 2e-3, "argmax_agreement": 0.98, "tokens": 400}
    whole = scored("pytorch-int8", right(47), "int8")
    for update, name in (
        ({"bytes": 0}, "PyTorch int8 bytes"),
        ({"digest": " ", "evaluation": scored("pytorch-int8", right(47), "other").model_copy(
            update={"model_digest": " "})}, "PyTorch int8 digest known"),
        ({"text_agreement": 1.01}, "PyTorch int8 share of equal answers of all"),
        ({"text_agreement": -0.01}, "PyTorch int8 share of equal answers"),
        ({"distance": Distance(**far | {"tokens": 0})}, "PyTorch int8 logits compared"),
        ({"distance": Distance(**far | {"kl": -1e-3})}, "PyTorch int8 logits divergence is one"),
        ({"distance": Distance(**far | {"argmax_agreement": 1.01})}, "PyTorch int8 logits agreement is a share of all"),
        ({"evaluation": scored("pytorch-int8", right(47), "older")}, "PyTorch int8 measured file"),
        ({"evaluation": scored("tuned", right(47), "int8")}, "pytorch-int8 arm"),
        ({"evaluation": whole.model_copy(update={"split_digest": digest("other")})}, "PyTorch int8 test file"),
        ({"evaluation": whole.model_copy(update={"ids": whole.ids[::-1]})}, "PyTorch int8 same examples in order"),
    ):  # fmt: skip
        made = with_pytorch(quantized, pytorch(scored, **update))
        # A digest of nothing is known to nobody, whatever was measured.
        also = {"PyTorch int8 measured file"} if name == "PyTorch int8 digest known" else set()
        assert failed(tuned, made) == {name} | also


def test_a_pytorch_model_that_was_asked_in_other_words_closes_it(tuned, quantized, scored):
    file = pytorch(scored)
    decoding = file.evaluation.decoding.model_copy(update={"prompt_digest": digest("others")})
    evaluation = file.evaluation.model_copy(update={"decoding": decoding})
    made = with_pytorch(quantized, file.model_copy(update={"evaluation": evaluation}))
    assert failed(tuned, made) == {"PyTorch int8 prompts"}


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_pytorch_numbers_that_are_none_close_it(tuned, quantized, scored, odd):
    file = pytorch(scored)
    for update in (
        {"text_agreement": odd},
        {"distance": file.distance.model_copy(update={"kl": odd})},
        {"distance": file.distance.model_copy(update={"max_abs": odd})},
        {"evaluation": file.evaluation.model_copy(update={"value": odd})},
    ):
        made = with_pytorch(quantized, file.model_copy(update=update))
        assert "quantization report" in failed(tuned, made)
