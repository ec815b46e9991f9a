"""Counts are held against models built on the meta device and against published totals."""

from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from core.models.config import LoraConfig
from core.models.resources import (
    PUBLISHED,
    ModelShape,
    count_lora,
    count_parameters,
    published_shape,
    shape_from_config,
)

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 160,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
}
CONFIGS: list[PretrainedConfig] = [
    LlamaConfig(**SIZES),
    LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    Qwen2Config(**SIZES),
    Qwen3Config(**SIZES, head_dim=24),
    Phi3Config(**SIZES),
    MistralConfig(**SIZES),
    Gemma2Config(**SIZES, head_dim=24),
    Gemma3TextConfig(**SIZES, head_dim=24),
    Gemma3Config(text_config={**SIZES, "head_dim": 24}, vision_config=SMALL_VISION),
]


def on_meta(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.tie_weights()
    return model


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_parameter_count_equals_the_built_model(config: PretrainedConfig) -> None:
    shape = shape_from_config(config.to_dict())
    assert shape is not None
    assert count_parameters(shape) == parameters(on_meta(config))


@pytest.mark.parametrize("config", CONFIGS[:-1], ids=lambda config: type(config).__name__)
def test_adapter_count_equals_peft(config: PretrainedConfig) -> None:
    names = ("qkv_proj", "gate_up_proj", *LoraConfig().target_modules)
    lora = LoraConfig(r=8)
    adapted = get_peft_model(on_meta(config), PeftLoraConfig(r=8, target_modules=list(names)))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    shape = shape_from_config(config.to_dict())
    assert shape is not None
    assert count_lora(shape, lora) == trained


def test_dora_adds_one_length_per_output() -> None:
    config = LlamaConfig(**SIZES)
    names = list(LoraConfig().target_modules)
    adapted = get_peft_model(on_meta(config), PeftLoraConfig(r=8, target_modules=names, use_dora=True))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    shape = shape_from_config(config.to_dict())
    assert shape is not None
    assert count_lora(shape, LoraConfig(r=8, use_dora=True)) == trained


def test_all_linear_and_fused_names_find_every_layer() -> None:
    for config in (LlamaConfig(**SIZES), Phi3Config(**SIZES)):
        shape = shape_from_config(config.to_dict())
        assert shape is not None
        assert count_lora(shape, LoraConfig(target_modules="all-linear")) == count_lora(shape, LoraConfig())


def test_adapter_count_follows_the_switches() -> None:
    shape = PUBLISHED["Qwen/Qwen3-0.6B"]
    whole = count_lora(shape, LoraConfig())
    attention = count_lora(shape, LoraConfig(finetune_mlp_modules=False))
    mlp = count_lora(shape, LoraConfig(finetune_attention_modules=False))
    assert attention + mlp == whole
    assert attention == count_lora(shape, LoraConfig(target_modules=("q_proj", "k_proj", "v_proj", "o_proj")))


# Parameters as published with the checkpoints; counted apart from our formula.
CHECKPOINTS = {
    "google/gemma-3-270m-it": 268_098_176,
    "google/gemma-3-1b-it": 999_885_952,
    "google/gemma-3-4b-it": 4_300_079_472,
    "google/gemma-3-12b-it": 12_187_325_040,
    "google/gemma-3-27b-it": 27_432_406_640,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/Phi-3.5-mini-instruct": 3_821_079_552,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "microsoft/phi-4": 14_659_507_200,
}


CONFIG_OF = {
    "llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "phi3": Phi3Config,
    "gemma3_text": Gemma3TextConfig,
}  # fmt: skip


SIGLIP_SETTINGS: dict[str, Any] = {
    "hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304,
    "image_size": 896, "patch_size": 14,
}  # fmt: skip


def config_of(shape: ModelShape) -> PretrainedConfig:
    """Write a shape as Transformers' own config."""
    settings: dict[str, Any] = {
        "hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim, "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab, "tie_word_embeddings": shape.is_tied, "pad_token_id": 0,
    }  # fmt: skip
    if shape.family == "phi3":
        settings.pop("head_dim")
    if shape.vision is None:
        return CONFIG_OF[shape.family](**settings)
    tower = {**SIGLIP_SETTINGS, "vision_use_head": False}
    return Gemma3Config(text_config=settings, vision_config=tower)


def test_every_published_shape_has_a_published_total() -> None:
    assert set(CHECKPOINTS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_count_what_transformers_builds(name: str) -> None:
    assert count_parameters(PUBLISHED[name]) == parameters(on_meta(config_of(PUBLISHED[name])))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_shapes_give_the_published_totals(name: str) -> None:
    assert count_parameters(PUBLISHED[name]) == CHECKPOINTS[name]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("unsloth/gemma-3-4b-it-unsloth-bnb-4bit", "google/gemma-3-4b-it"),
        ("unsloth/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
        ("Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-4B"),
        ("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"),
        ("microsoft/Phi-4-mini-instruct", "microsoft/Phi-4-mini-instruct"),
        ("unsloth/Qwen2.5-0.5B-Instruct-bnb-4bit", "Qwen/Qwen2.5-0.5B-Instruct"),
        ("Qwen/Qwen2.5-Coder-7B-Instruct", None),
        ("someone/else", None),
    ],
)
def test_variants_of_a_published_model_are_recognised(name: str, known: str | None) -> None:
    assert published_shape(name) == (PUBLISHED[known] if known else None)


def test_a_published_gemma_config_leaves_keys_out() -> None:
    """Gemma 3 files name only what differs from the family's defaults."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    shape = shape_from_config({"model_type": "gemma3", "text_config": text, "vision_config": {}})
    assert shape == PUBLISHED["google/gemma-3-4b-it"]


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "mamba2"}, {"model_type": "llama"}, {"model_type": "qwen3_moe"}]
)
def test_an_unknown_family_has_no_shape(config: dict[str, str]) -> None:
    assert shape_from_config(config) is None
