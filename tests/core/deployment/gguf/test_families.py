"""Every family as GGUF in every format: logits, rotary settings, ends of turns, template."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from core.data.chat import ChatTokenizer
from core.data.records import Message
from core.deployment.gguf import write_gguf
from core.deployment.llama.causes import family_causes
from core.deployment.llama.spelling import KEY, Spelling
from core.quantization.gguf import quantize_gguf
from core.quantization.reports import Distance
from tests.families import FAMILIES, VARIANTS, build
from tests.families.logits import compare_logits
from tests.families.texts import TEXTS

ALL = FAMILIES + VARIANTS
# llama.cpp evaluates Gemma's GELU in half precision; everything else is float32 arithmetic.
ROUNDING = dict.fromkeys(ALL, 1e-4) | {"gemma-3": 1e-2}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @lru_cache
    def made(family: str, hidden: int = 64) -> Path:
        return build(family, tmp_path_factory.mktemp("families") / family, hidden=hidden)

    return made


@lru_cache
def written(folder: Path, dtype: Any) -> Path:
    target = folder / f"{dtype}.gguf"
    write_gguf(folder, target, dtype=dtype, name="tiny")
    return target


def real_ids(folder: Path) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = ChatTokenizer(tokenizer, tokenizer.chat_template)
    turns = [Message(role="user", content=TEXTS[0]), Message(role="assistant", content=TEXTS[1])]
    return [*chat.prompt_ids(turns), *tokenizer(TEXTS[1], add_special_tokens=False).input_ids]


@pytest.mark.parametrize("family", ALL)
def test_float32_logits_equal_the_checkpoint_on_real_and_on_long_text(family: str, models: Any) -> None:
    folder = models(family)
    real = real_ids(folder)
    # Beyond 512 tokens, which is llama.cpp's batch, beyond Gemma's window and LongRoPE's original context.
    long = (real * 20)[:700]
    report = compare_logits(folder, written(folder, "f32"), tokens=72, sequences=[long], context_length=1024)
    if family in VARIANTS:
        # Opened with more than the original context, llama.cpp uses the long factors for short text too.
        report = compare_logits(
            folder, written(folder, "f32"), tokens=0, sequences=[long], context_length=1024
        )
        short = compare_logits(folder, written(folder, "f32"), sequences=[real[:90]], context_length=256)
        assert short.max_abs < ROUNDING[family]
    assert report.max_abs < ROUNDING[family]
    assert report.kl < 1e-6
    assert report.argmax_agreement > 0.999
    assert report.tokens >= 700


# On random weights, which are the hardest: their logits are nearly flat.
LARGEST_KL = {"f16": 1e-5, "bf16": 1e-3, "Q8_0": 1e-2, "Q6_K": 0.05, "Q5_K_M": 0.15, "Q4_K_M": 0.5}


def distances(folder: Path, kinds: Sequence[str]) -> dict[str, Distance]:
    sample = [real_ids(folder)[:100]]
    found = {}
    for kind in kinds:
        path = folder / f"{kind}.gguf"
        if kind in ("f16", "bf16"):
            written(folder, kind)
        else:
            quantize_gguf(written(folder, "f16"), path, kind, threads=1)
        found[kind] = compare_logits(folder, path, tokens=0, sequences=sample)
    assert all(0 < report.kl < LARGEST_KL[kind] for kind, report in found.items()), found
    assert found["f16"].argmax_agreement > 0.97
    return found


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "qwen3"])
def test_the_largest_and_the_smallest_type_round_and_nothing_else(family: str, models: Any) -> None:
    distances(models(family, 256), ("f16", "Q4_K_M"))


def test_every_type_rounds_more_than_the_larger_one(models: Any) -> None:
    found = distances(models("qwen3", 256), tuple(LARGEST_KL))
    by_size = [found[kind].kl for kind in ("f16", "bf16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")]
    assert by_size == sorted(by_size)


def fields(path: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


@pytest.mark.parametrize("family", ALL)
def test_ends_template_and_rules_are_in_the_file(family: str, models: Any) -> None:
    folder = models(family)
    found = fields(written(folder, "f16"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = ChatTokenizer(tokenizer, tokenizer.chat_template)
    name = "tokenizer.ggml.{}_token_id"
    ends = {found.get(name.format(kind)) for kind in ("eos", "eot", "eom")}
    assert chat.stop_ids <= ends
    if found[name.format("eos")] != chat.end_of_turn_ids[0]:
        assert found[name.format("eot")] == chat.end_of_turn_ids[0]
    assert found.get(name.format("bos")) == tokenizer.bos_token_id
    assert found["tokenizer.chat_template"] == tokenizer.chat_template
    rules = Spelling.parse(found[KEY])
    assert set(rules.settings["control"]) == chat.control_tokens
    assert rules.settings["normalization"] == ("NFC" if family.startswith("qwen") else "")
    assert bool(rules.settings["strip_left"]) is (family == "phi-4")
    assert bool(rules.settings["strip_right"]) is (family in ("phi-3", "phi-3-128k", "phi-4"))


def test_an_end_of_turn_that_generation_config_forgot_is_an_end(tmp_path: Path) -> None:
    folder = build("gemma-3", tmp_path / "gemma")
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = fields(written(folder, "f16"))
    assert found["tokenizer.ggml.eot_token_id"] == tokenizer.convert_tokens_to_ids("<end_of_turn>")


ROPE = {
    "gemma-3": {
        "gemma3.rope.freq_base": 1e6,
        "gemma3.rope.freq_base_swa": 1e4,
        "gemma3.rope.scaling.factor": 8.0,
    },
    "llama-3.1": {"llama.rope.freq_base": 5e5, "llama.rope.dimension_count": 16},
    "mistral": {"llama.rope.freq_base": 1e6},
    "qwen2.5": {"qwen2.rope.freq_base": 1e6},
    "qwen3": {"qwen3.rope.freq_base": 1e6, "qwen3.attention.key_length": 32},
    "phi-3": {"phi3.rope.freq_base": 1e4, "phi3.context_length": 1024},
    "phi-4": {"phi3.rope.freq_base": 2.5e5, "phi3.rope.dimension_count": 12},
    "phi-4-mini": {"phi3.rope.dimension_count": 12, "phi3.rope.scaling.original_context_length": 256},
}


@pytest.mark.parametrize("family", ROPE)
def test_rotary_settings_are_the_families_own(family: str, models: Any) -> None:
    path = written(models(family), "f32")
    found = fields(path)
    assert {key: found[key] for key in ROPE[family]} == ROPE[family]
    names = {tensor.name for tensor in GGUFReader(path).tensors}
    assert ("rope_freqs.weight" in names) is family.startswith("llama")
    assert ("output.weight" in names) is (family not in ("gemma-3", "llama-3.2", "qwen3", "phi-4-mini"))


# One fault of each kind the family is prone to, and what of the checkpoint it touches.
FAULTS = {
    "gemma-3": ("model.layers.1.input_layernorm.weight", lambda w: w + 1),
    "llama-3.1": ("model.layers.0.self_attn.q_proj.weight", lambda w: w.reshape(4, 2, -1, 64).transpose(1, 2).reshape(64, 64)),
    "qwen2.5": ("model.layers.1.self_attn.k_proj.bias", lambda w: w * 0),
    "qwen3": ("model.layers.0.self_attn.q_norm.weight", lambda w: w * 0 + 1),
    "phi-3": ("model.layers.0.self_attn.qkv_proj.weight", lambda w: w.roll(16, 0)),
}  # fmt: skip


@pytest.mark.parametrize("family", FAULTS)
def test_a_typical_fault_shows_far_beyond_rounding(family: str, models: Any, tmp_path: Path) -> None:
    good, broken = models(family), build(family, tmp_path / "broken")
    name, change = FAULTS[family]
    weights = load_file(broken / "model.safetensors")
    weights[name] = change(weights[name]).contiguous()
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    report = compare_logits(good, written(broken, "f32"), tokens=64)
    assert report.max_abs > 10 * ROUNDING[family]
    assert report.kl > 1e-6


def test_every_architecture_has_causes_of_its_own(models: Any) -> None:
    from core.deployment.gguf.families import FAMILIES as ARCHITECTURES

    common = family_causes("Unheard")
    assert len(common) == 2
    for architecture in ARCHITECTURES:
        assert len(family_causes(architecture)) > len(common)
    assert any("permuted" in cause for cause in family_causes("LlamaForCausalLM"))
    assert any("minus one" in cause for cause in family_causes("Gemma3ForCausalLM"))
    assert any("partial_rotary" in cause for cause in family_causes("Phi3ForCausalLM"))
