"""Answering, merging and exported files: against measured peaks and published files."""

import pytest

from core.models.config import LoraConfig
from core.models.resources import (
    GB,
    PUBLISHED,
    count_parameters,
    estimate_disk,
    estimate_gguf,
    estimate_inference,
    estimate_merge,
    estimate_onnx,
    estimate_pytorch,
)

LLAMA_8B = PUBLISHED["meta-llama/Llama-3.1-8B-Instruct"]


@pytest.mark.parametrize(
    ("name", "measured"), [("meta-llama/Llama-3.2-1B-Instruct", 3.838), ("Qwen/Qwen3-4B", 10.985)]
)
def test_answering_matches_the_measured_peak(name: str, measured: float) -> None:
    """32 prompts of 512 tokens and 64 more, bfloat16, on an H200."""
    need = estimate_inference(PUBLISHED[name], 2, batch=32, window=512, more=64)
    assert need.total / GB == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize(
    ("name", "measured"), [("meta-llama/Llama-3.2-1B-Instruct", 2.547), ("Qwen/Qwen3-4B", 7.902)]
)
def test_merging_matches_the_measured_peak(name: str, measured: float) -> None:
    need = estimate_merge(PUBLISHED[name], LoraConfig(r=16), 2)
    assert need.total / GB == pytest.approx(measured, rel=0.02)


def test_a_whole_merge_matches_the_peak_of_a_run() -> None:
    """The finetune phase of a whole run on an H200 compares the logits of one example of 2044 tokens."""
    need = estimate_merge(PUBLISHED["meta-llama/Llama-3.2-1B-Instruct"], LoraConfig(r=16), 2, probe=2044)
    assert need.total == pytest.approx(6_736_592_384, rel=0.02)


def test_keys_and_values_are_kept_for_every_token() -> None:
    need = estimate_inference(LLAMA_8B, 2, batch=8, window=16, more=100_000)
    assert need.weights == 2 * 8_030_261_248
    assert need.cache == 8 * 100_016 * 131_072  # 2 (k, v) x 8 heads x 128 x 32 layers x 2 bytes


def test_scoring_texts_needs_their_logits() -> None:
    asked = estimate_inference(LLAMA_8B, 2, batch=8, window=512)
    scored = estimate_inference(LLAMA_8B, 2, batch=8, window=512, scores=True)
    assert scored.activations == 10 * (1 << 28) > asked.activations


def test_gguf_sizes_match_published_files() -> None:
    """Files of Llama 3.1 8B as commonly published: 4.66, 4.92, 5.73, 6.60 and 8.54 GB (10^9 bytes)."""
    for gguf_type, published in {
        "Q4_0": 4.66,
        "Q4_K_M": 4.92,
        "Q5_K_M": 5.73,
        "Q6_K": 6.60,
        "Q8_0": 8.54,
        "f16": 16.07,
    }.items():
        assert estimate_gguf(LLAMA_8B, gguf_type) / 1e9 == pytest.approx(published, rel=0.005)


def test_onnx_sizes_order_by_bits() -> None:
    sizes = [estimate_onnx(LLAMA_8B, kind) for kind in ("int4", "int8", "fp16", "fp32")]
    assert sizes == sorted(sizes)
    assert sizes[3] == 4 * count_parameters(LLAMA_8B)
    # Blocks of 32: 16 bytes of nibbles or 32 bytes, a float32 scale, a zero point.
    assert sizes[1] == int(count_parameters(LLAMA_8B) * 37 / 32)
    tables = 2 * LLAMA_8B.vocab * LLAMA_8B.hidden
    assert sizes[0] == int((count_parameters(LLAMA_8B) - tables) * 20.5 / 32 + tables * 37 / 32) + 0


def test_an_eight_bit_pytorch_model_takes_a_byte_a_weight_and_a_step_a_row() -> None:
    size = estimate_pytorch(LLAMA_8B)
    assert size / count_parameters(LLAMA_8B) == pytest.approx(1.001, abs=1e-4)
    pair = estimate_disk(LLAMA_8B, LoraConfig(), 2, ["Q8_0"], [], ["int8"])
    assert pair["PyTorch files"] == size
    assert estimate_disk(LLAMA_8B, LoraConfig(), 2, ["Q8_0"])["PyTorch files"] == 0


def test_disk_counts_every_file() -> None:
    shape = PUBLISHED["Qwen/Qwen3-0.6B"]
    files = estimate_disk(shape, LoraConfig(), 2, ["Q8_0", "Q4_K_M"], ["int4"])
    small, large = estimate_gguf(shape, "Q4_K_M"), estimate_gguf(shape, "Q8_0")
    assert files["GGUF files"] == small + large
    assert files["bundle"] == large
    assert files["merged model"] == 2 * count_parameters(shape)
    assert files["ONNX files"] == estimate_onnx(shape, "int4") + 4 * count_parameters(shape)
    assert estimate_disk(shape, LoraConfig(), 2, ["Q8_0"])["ONNX files"] == 0
